"""Beam search over one prompt, greedy or sampled, with the results of transformers 4.57."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.generation.decoding.logits import log_softmax, logits_processors, nothing_left
from pipelines.generation.decoding.request import DecodeRequest, Generation, Step
from pipelines.generation.decoding.sampling import Sampler, bounds, top, warpers
from pipelines.generation.decoding.stopping import FinishReason, finish_reason

_WORST = np.float32(-1e9)  # below every real score; also the score of an empty place


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence, prompt included; `score` is its log-probability over its length to `length_penalty`."""

    ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason


class BeamSearch:
    """One search: `num_beams` running beams, and the `num_beams` best finished hypotheses so far."""

    def __init__(self, request: DecodeRequest) -> None:
        config = self._config = request.config
        self._processors = logits_processors(config, len(request.prompt))
        self._warpers, self._sampler, self._stop = warpers(config), Sampler(request.seed), request.stop
        self._eos = np.asarray(config.eos_token_id, np.int64)
        beams = config.num_beams
        self._prompt_tokens = len(request.prompt)
        self._running = np.tile(np.asarray(request.prompt, np.int64), (beams, 1))  # (beams, tokens)
        # All beams begin equal: the first step continues the first one only.
        self._scores = np.full(beams, _WORST)
        self._scores[0] = 0
        self._finished: list[tuple[np.float32, Hypothesis | None]] = [(_WORST, None)] * beams
        self._can_improve = True

    @property
    def last_tokens(self) -> np.ndarray:
        """The last token of each beam, (beams,) int64."""
        last: np.ndarray = self._running[:, -1]
        return last

    def generations(self) -> tuple[Generation, ...]:
        """The best hypotheses so far, best first.

        Fewer than `num_return_sequences` where the search found fewer, as when all but one first token are forbidden;
        possibly none before the search is over.
        """
        found = [hypothesis for _, hypothesis in self._finished if hypothesis is not None]
        return tuple(self._generation(one) for one in found[: self._config.num_return_sequences])

    def advance(self, logits: np.ndarray) -> tuple[np.ndarray, bool]:
        """As `advance_all`, for this search."""
        (outcome,) = advance_all([self], logits)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def apply_processors(self, scores: np.ndarray) -> None:
        """Apply the request's processors and warpers to the log-probabilities of the next tokens, (beams, vocab)."""
        for process in self._processors:
            process(self._running, scores)
        for warp in self._warpers:
            warp(scores)
        if self._config.renormalize_logits:
            alive = scores.max(axis=1) > -np.inf  # a beam with every token forbidden has no distribution
            scores[alive] = log_softmax(scores[alive])

    @property
    def draws(self) -> bool:
        """Whether the next tokens are sampled; else the best are taken."""
        return self._config.do_sample

    @property
    def candidates(self) -> int:
        """How many candidates a step keeps: enough to continue all beams if every end of sequence is among them."""
        return max(2, 1 + len(self._config.eos_token_id)) * self._config.num_beams

    def extend(self, beams: np.ndarray, tokens: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, bool]:
        """Continue with the best candidates: `beams` by `tokens` with `scores`, all (n,), in the order of the beams.

        Returns the beam that each new one continues, (beams,) int64, and whether the search is over. Raises
        InvalidInputError where every token is forbidden and no hypothesis is finished.
        """
        total = scores + self._scores[beams]
        if not (total > -np.inf).any() and not any(hypothesis for _, hypothesis in self._finished):
            raise nothing_left(total.max() if len(total) else np.nan)
        draw = self._sampler.draw_distinct if self._config.do_sample else top
        chosen = draw(total, self.candidates)
        came_from, candidate_scores = beams[chosen], total[chosen]
        candidates = np.concatenate([self._running[came_from], tokens[chosen, None]], axis=1)
        reasons = self._reasons(candidates)
        ended = np.asarray([reason is not None for reason in reasons])

        self._keep_finished(candidates, candidate_scores, reasons)
        running_scores = candidate_scores + ended * _WORST
        going_on = top(running_scores, self._config.num_beams)
        self._running, self._scores = candidates[going_on], running_scores[going_on]
        self._can_improve = self._can_improve and self._may_improve()
        over = not self._can_improve or self._full_early() or bool(ended.all())
        return came_from[going_on], over

    def _generation(self, hypothesis: Hypothesis) -> Generation:
        *before, last = hypothesis.ids[self._prompt_tokens :]
        return Generation((*map(Step, before), Step(last, finish_reason=hypothesis.finish_reason)))

    def _reasons(self, candidates: np.ndarray) -> list[FinishReason | None]:
        """Why each of `candidates`, (n, tokens), ends; None for those that do not."""
        config = self._config
        assert config.max_length is not None
        ending = (candidates[:, -1:] == self._eos).any(axis=1) | (candidates.shape[1] >= config.max_length)
        reasons: list[FinishReason | None] = [None] * len(candidates)
        for index in range(len(candidates)) if self._stop is not None else np.flatnonzero(ending):
            ids = candidates[index].tolist()
            reasons[index] = finish_reason(
                ids, eos_token_id=config.eos_token_id, max_length=config.max_length, stop=self._stop
            )
        return reasons

    def _keep_finished(
        self, candidates: np.ndarray, scores: np.ndarray, reasons: Sequence[FinishReason | None]
    ) -> None:
        """Merge the ended ones of the best `num_beams` candidates into the finished hypotheses."""
        if self._full_early() or not self._can_improve:
            return
        length = candidates.shape[1] - self._prompt_tokens
        normalized = scores / np.float32(length**self._config.length_penalty)
        merged = list(self._finished)
        for index, reason in enumerate(reasons[: self._config.num_beams]):
            if reason is not None:
                ids = tuple(candidates[index].tolist())
                merged.append((normalized[index], Hypothesis(ids, float(normalized[index]), reason)))
        merged.sort(key=lambda entry: -entry[0])
        self._finished = merged[: self._config.num_beams]

    def _full_early(self) -> bool:
        return self._config.early_stopping is True and all(hypothesis for _, hypothesis in self._finished)

    def _may_improve(self) -> bool:
        """Whether the best running beam could still beat a finished hypothesis, by transformers' heuristic."""
        config = self._config
        length = self._running.shape[1] - self._prompt_tokens
        if config.early_stopping == "never" and config.length_penalty > 0:
            assert config.max_length is not None
            length = config.max_length - self._prompt_tokens
        best = self._scores[0] / np.float32(length**config.length_penalty)
        worst = min(score for score, _ in self._finished)
        return any(best > (worst if hypothesis else _WORST) for _, hypothesis in self._finished)


def advance_all(searches: Sequence[BeamSearch], logits: np.ndarray) -> list[tuple[np.ndarray, bool] | Exception]:
    """Extend the beams of several searches by one token, from logits, (all beams, vocab) float32, which it overwrites.

    For each search: the beam that each new one continues, (beams,) int64, and whether it is over; or its error.
    """
    scores = log_softmax(logits, out=logits)
    ends = np.cumsum([len(search.last_tokens) for search in searches])
    outcomes: list[tuple[np.ndarray, bool] | Exception] = []
    failed: dict[int, Exception] = {}
    for index, (search, end) in enumerate(zip(searches, ends, strict=True)):
        try:
            search.apply_processors(scores[end - len(search.last_tokens) : end])
        except Exception as error:
            failed[index] = error
    # Each beam offers as many candidates as its whole search needs.
    looked_at = scores >= bounds(scores, max(search.candidates for search in searches))[:, None]
    for search, end in zip(searches, ends, strict=True):
        looked_at[end - len(search.last_tokens) : end] |= search.draws
    rows, tokens = np.divmod(np.flatnonzero(looked_at), scores.shape[1])
    places = np.searchsorted(rows, [0, *ends])
    for index, (search, end) in enumerate(zip(searches, ends, strict=True)):
        found = slice(places[index], places[index + 1])
        try:
            if index in failed:
                raise failed[index]
            beams = rows[found] - (end - len(search.last_tokens))
            outcomes.append(search.extend(beams, tokens[found], scores[rows[found], tokens[found]]))
        except Exception as error:
            outcomes.append(error)
    return outcomes
