"""SequenceState: one sequence while it decodes. It turns the logits of a step into the next token."""

from collections.abc import Sequence

import numpy as np

from pipelines.generation.decoding.best_tokens import BestTokens, draws_from_all, temperature_of, tokens_needed
from pipelines.generation.decoding.logits import LogitsProcessor, log_softmax, logits_processors, nothing_left
from pipelines.generation.decoding.request import DecodeRequest, PromptScores, Ranked, Step
from pipelines.generation.decoding.sampling import Sampler, draw_each, top, warpers
from pipelines.generation.decoding.step_logits import RankedLogits, StepLogits
from pipelines.generation.decoding.stopping import FinishReason, finish_reason


class SequenceState:
    """The `sequence`-th answer to a request. Its tokens depend on the request and the logits alone."""

    def __init__(
        self, request: DecodeRequest, sequence: int = 0, processors: Sequence[LogitsProcessor] | None = None
    ) -> None:
        """`processors` are those of the request, where another of its sequences has made them."""
        self.request = request
        own = logits_processors(request.config, len(request.prompt)) if processors is None else processors
        self.guide = None if request.grammar is None else request.grammar.start()
        self.processors = own if self.guide is None else [*own, self.guide.process]
        self.warpers = warpers(request.config)
        self.sampler = Sampler(request.seed, sequence)
        self._read = list(request.prompt)
        self._ids = np.empty((1, request.max_length), np.int64)  # the same, as the processors take it
        self._ids[0, : len(self._read)] = self._read

    @property
    def last_token(self) -> int:
        return self._read[-1]

    @property
    def ids(self) -> np.ndarray:
        """All tokens so far, prompt included, (1, tokens) int64."""
        return self._ids[:, : len(self._read)]

    def append(self, token: int) -> FinishReason | None:
        """Append a token; returns why the sequence ends with it, None where it does not."""
        self._ids[0, len(self._read)] = token
        self._read.append(token)
        if self.guide is not None:
            self.guide.append(token)
        return finish_reason(
            self._read,
            eos_token_id=self.request.config.eos_token_id,
            max_length=self.request.max_length,
            stop=self.request.stop,
        )

    def advance(self, logits: np.ndarray) -> Step:
        """Choose the next token from the model's logits, (1, vocab) float32, which it may overwrite."""
        (step,) = advance([self], logits)
        if isinstance(step, Exception):
            raise step
        return step


def advance(states: Sequence[SequenceState], logits: np.ndarray) -> list[Step | Exception]:
    """The next token of each sequence, from the model's logits, (rows, vocab) float32, which it may overwrite.

    A sequence that fails (its stop criterion or its guide raises, its request forbids every token) has its error in the
    list.
    """
    logprobs: dict[int, np.ndarray] = {}
    errors: dict[int, Exception] = {}
    for row, one in enumerate(states):
        if one.request.logprobs:
            logprobs[row] = log_softmax(logits[row])  # before the processors change the logits
        try:
            for process in one.processors:
                process(one.ids, logits[row : row + 1])
        except Exception as error:  # of its guide
            errors[row] = error
    tokens = logits.argmax(axis=1)
    best = logits[np.arange(len(tokens)), tokens]
    failed: dict[int, Exception] = {int(row): nothing_left(best[row]) for row in np.flatnonzero(~np.isfinite(best))}
    failed |= errors
    sampled = [row for row, one in enumerate(states) if one.request.config.do_sample and row not in failed]
    if sampled:
        chosen = [states[row] for row in sampled]
        tokens[sampled] = draw_each(
            logits if len(sampled) == len(logits) else logits[sampled],
            [one.sampler for one in chosen],
            [one.warpers for one in chosen],
            [one.request.config.top_k for one in chosen],
        )
    steps: list[Step | Exception] = []
    for row, (one, token) in enumerate(zip(states, tokens.tolist(), strict=True)):
        if row in failed:
            steps.append(failed[row])
            continue
        steps.append(_appended(one, token, logprobs.get(row)))
    return steps


def advance_rows(states: Sequence[SequenceState], logits: StepLogits, rows: Sequence[int]) -> list[Step | Exception]:
    """As `advance`, from the logits in `rows`; where the best tokens decide, no others leave the device."""
    steps: dict[int, Step | Exception] = {}
    if isinstance(logits, RankedLogits):
        steps = _from_best(states, logits, rows) | _drawn(states, logits, rows)
    left = [index for index in range(len(states)) if index not in steps]
    if left:
        whole = logits.rows([rows[index] for index in left])
        steps |= zip(left, advance([states[index] for index in left], whole), strict=True)
    return [steps[index] for index in range(len(states))]


def _from_best(
    states: Sequence[SequenceState], logits: RankedLogits, rows: Sequence[int]
) -> dict[int, Step | Exception]:
    """The steps of those states that the most likely tokens decide, by index."""
    needed: dict[int, int] = {}
    for index, one in enumerate(states):
        count = tokens_needed(one.request.config, one.request.top_tokens, processed=bool(one.processors))
        if count is not None:
            needed[index] = count
    if not needed:
        return {}
    temperatures = [temperature_of(states[index].request.config) for index in needed]
    count = min(max(needed.values()), logits.vocab)
    best = logits.best([rows[index] for index in needed], count, temperatures)
    steps: dict[int, Step | Exception] = {}
    for place, index in enumerate(needed):
        one, total = states[index], float(best.total[place])
        scores, tokens = best.scores[place], best.tokens[place]
        some = BestTokens(scores, tokens, float(best.tempered[place]), logits.vocab)
        if not np.isfinite(total):
            continue
        try:
            token = some.choose(one.request.config, one.ids, one.processors, one.warpers, one.sampler)
        except Exception as error:
            steps[index] = error
            continue
        if token is not None:
            steps[index] = _appended(one, token, scores - np.float32(total), tokens)
    return steps


def _drawn(states: Sequence[SequenceState], logits: RankedLogits, rows: Sequence[int]) -> dict[int, Step | Exception]:
    """The steps of those states whose token is drawn from all on the device, by index."""
    chosen = {
        index: one
        for index, one in enumerate(states)
        if draws_from_all(one.request.config, processed=bool(one.processors)) and not one.request.logprobs
    }
    if not chosen:
        return {}
    temperatures = [one.request.config.temperature for one in chosen.values()]
    shares = [one.sampler.share for one in chosen.values()]
    tokens = logits.draw([rows[index] for index in chosen], temperatures, shares)
    steps: dict[int, Step | Exception] = {}
    for (index, one), token in zip(chosen.items(), tokens, strict=True):
        if token is not None:
            one.sampler.drawn()
            steps[index] = _appended(one, token, None)
    return steps


def _appended(
    state: SequenceState, token: int, logprobs: np.ndarray | None, tokens: np.ndarray | None = None
) -> Step | Exception:
    """The step that appends `token`, with the logprobs that the request asks for, or the error of its stop criterion.

    `logprobs` are those of the vocabulary, (vocab,), or of `tokens`, best first.
    """
    try:
        reason = state.append(token)
    except Exception as error:
        return error
    if not state.request.logprobs or logprobs is None:
        return Step(token, finish_reason=reason)
    if tokens is None:
        shown, own = top(logprobs, state.request.top_tokens), logprobs[token]
        named = zip(shown, logprobs[shown], strict=True)
    else:
        own = logprobs[int(np.flatnonzero(tokens == token)[0])]
        named = zip(tokens[: state.request.top_tokens], logprobs, strict=False)
    return Step(token, float(own), tuple((int(index), float(logprob)) for index, logprob in named), reason)


def score_prompt(scores: PromptScores, request: DecodeRequest, start: int, logits: np.ndarray) -> None:
    """Add the prompt tokens that follow those of `logits`, (tokens, vocab), which begin at `start`."""
    following = np.asarray(request.prompt[start + 1 : start + 1 + len(logits)], np.int64)
    logprobs = log_softmax(logits[: len(following)])
    own = logprobs[np.arange(len(following)), following]
    scores.logprobs += own.tolist()
    if request.prompt_top is None:
        return
    for row, logprob in zip(logprobs, own, strict=True):
        best = top(row, request.prompt_top)
        named = zip(best.tolist(), row[best].tolist(), strict=True)
        scores.ranks.append(Ranked(1 + int(np.count_nonzero(row > logprob)), tuple(named)))
