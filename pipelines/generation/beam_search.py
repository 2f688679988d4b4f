"""Beam search over one prompt, step by step as transformers 4.57 does it; sampled beams too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.generation.logits import log_softmax, logits_processors
from pipelines.generation.request import Generation, Request, Step
from pipelines.generation.sampling import Sampler, top, warpers
from pipelines.generation.stopping import FinishReason, finish_reason

_WORST = np.float32(-1e9)  # the score of what must lose against everything real; also of places not taken yet


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence, prompt included; `score` is its log-probability over its length to `length_penalty`."""

    ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason


class BeamSearch:
    """The state of one search: `num_beams` running beams, and the `num_beams` best finished hypotheses so far."""

    def __init__(self, request: Request) -> None:
        config = self._config = request.config
        self._processors = logits_processors(config, len(request.prompt))
        self._warpers, self._sampler, self._stop = warpers(config), Sampler(request.seed), request.stop
        beams = config.num_beams
        self._prompt_tokens = len(request.prompt)
        self._running = np.tile(np.asarray(request.prompt, np.int64), (beams, 1))  # (beams, tokens)
        # All beams begin alike: only the first may be continued at first.
        self._scores = np.full(beams, _WORST)
        self._scores[0] = 0
        self._finished: list[tuple[np.float32, Hypothesis | None]] = [(_WORST, None)] * beams
        self._can_improve = True

    @property
    def last_tokens(self) -> np.ndarray:
        """The token that each beam goes on with, (beams,) int64."""
        last: np.ndarray = self._running[:, -1]
        return last

    def generations(self) -> tuple[Generation, ...]:
        """The best hypotheses so far, best first.

        Fewer than asked for where there are no more: all but one first token forbidden, and no second one; perhaps
        none before the search is over.
        """
        found = [hypothesis for _, hypothesis in self._finished if hypothesis is not None]
        return tuple(self._generation(one) for one in found[: self._config.num_return_sequences])

    def advance(self, logits: np.ndarray) -> tuple[np.ndarray, bool]:
        """Extend the beams by one token, from logits (beams, vocab), or (1, vocab) of the prompt that all begin with.

        Which beam each new one continues, (beams,) int64, and whether the search is over.
        """
        config = self._config
        scores = log_softmax(logits)
        if len(scores) < len(self._running):
            scores = np.repeat(scores, len(self._running), axis=0)
        for process in self._processors:
            process(self._running, scores)
        for warp in self._warpers:
            warp(scores)
        if config.renormalize_logits:
            scores = log_softmax(scores)
        total = (scores + self._scores[:, None]).ravel()
        # With every end of sequence among the candidates there are still enough that go on.
        count = max(2, 1 + len(config.eos_token_id)) * config.num_beams
        chosen = self._sampler.draw_distinct(total, count) if config.do_sample else top(total, count)
        beam, token = np.divmod(chosen, scores.shape[1])
        candidates = np.concatenate([self._running[beam], token[:, None]], axis=1)
        candidate_scores = total[chosen]
        reasons = [self._reason(ids) for ids in candidates.tolist()]
        ended = np.asarray([reason is not None for reason in reasons])

        self._keep_finished(candidates, candidate_scores, reasons)
        running_scores = candidate_scores + ended * _WORST
        going_on = top(running_scores, config.num_beams)
        self._running, self._scores = candidates[going_on], running_scores[going_on]
        self._can_improve = self._can_improve and self._may_improve()
        over = not self._can_improve or self._full_early() or bool(ended.all())
        return beam[going_on], over

    def _generation(self, hypothesis: Hypothesis) -> Generation:
        *before, last = hypothesis.ids[self._prompt_tokens :]
        return Generation((*map(Step, before), Step(last, finish_reason=hypothesis.finish_reason)))

    def _reason(self, ids: list[int]) -> FinishReason | None:
        config = self._config
        assert config.max_length is not None
        return finish_reason(ids, eos_token_id=config.eos_token_id, max_length=config.max_length, stop=self._stop)

    def _keep_finished(
        self, candidates: np.ndarray, scores: np.ndarray, reasons: Sequence[FinishReason | None]
    ) -> None:
        """Let those of the best `num_beams` candidates that have ended compete for the places of the finished."""
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
