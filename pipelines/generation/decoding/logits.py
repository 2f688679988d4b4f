"""Logits processors: they forbid tokens, or make them less likely, given the tokens so far.

Each takes `ids`, the tokens of every row so far, prompt included, (rows, tokens) int64, and `scores`, (rows, vocab)
float32, which it changes in place. They equal transformers' LogitsProcessor of the same name, and run in its order.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipelines.errors import GenerationError, InvalidInputError, SextetError
from pipelines.generation.decoding.config import GenerationConfig

_CACHED = 2**16  # elements at a time: intermediate results stay in the CPU cache

LogitsProcessor = Callable[[np.ndarray, np.ndarray], None]


def logits_processors(config: GenerationConfig, prompt_tokens: int) -> list[LogitsProcessor]:
    """The processors that a resolved config asks for, in order; empty where the logits stay as they are."""
    processors: list[LogitsProcessor] = []
    if config.logit_bias:
        processors.append(_bias(config.logit_bias))
    if config.repetition_penalty != 1.0:
        processors.append(_repetition_penalty(config.repetition_penalty))
    if config.frequency_penalty != 0.0:
        processors.append(_frequency_penalty(config.frequency_penalty))
    if config.presence_penalty != 0.0 or config.count_penalty != 0.0:
        processors.append(_answer_penalties(config.presence_penalty, config.count_penalty, prompt_tokens))
    if config.no_repeat_ngram_size > 0:
        processors.append(_no_repeat_ngram(config.no_repeat_ngram_size))
    if words := [word for word in config.bad_words_ids if word not in {(eos,) for eos in config.eos_token_id}]:
        processors.append(_bad_words(words))
    if config.min_length > prompt_tokens and config.eos_token_id:
        processors.append(_min_length(config.min_length, config.eos_token_id))
    if config.forced_bos_token_id is not None:
        processors.append(_forced(1, (config.forced_bos_token_id,)))
    if config.forced_eos_token_id and config.max_length is not None:
        processors.append(_forced(config.max_length - 1, config.forced_eos_token_id))
    if config.suppress_tokens:
        processors.append(_suppressed(config.suppress_tokens))
    if config.begin_suppress_tokens:
        # A forced token is the first of the answer: the tokens that must not begin it are suppressed after that one.
        after_forced = prompt_tokens == 1 and config.forced_bos_token_id is not None
        processors.append(_suppressed(config.begin_suppress_tokens, only_at=prompt_tokens + after_forced))
    return processors


def only_lowers(config: GenerationConfig) -> bool:
    """Whether no processor of a config ever raises a score: a token stays below those that it is far enough below."""
    penalties = (config.frequency_penalty, config.presence_penalty, config.count_penalty)
    forces = config.forced_bos_token_id is not None or config.forced_eos_token_id
    raises = any(bias > 0 for _, bias in config.logit_bias)
    return not raises and config.repetition_penalty >= 1.0 and min(penalties) >= 0.0 and not forces


def log_softmax(scores: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Log-probabilities over the last axis, float32; in `out` where it is given, which may be `scores`."""
    normalized: np.ndarray = np.subtract(scores, scores.max(axis=-1, keepdims=True), out=out, order="C")
    rows = normalized.reshape(-1, normalized.shape[-1])
    step = max(1, _CACHED // rows.shape[1])
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        some -= np.log(np.exp(some).sum(axis=-1, keepdims=True))
    return normalized


def nothing_left(best: float) -> SextetError:
    """The error for logits of which no token can be chosen; `best` is the largest score.

    (Transformers then takes token 0 where it is greedy, and fails where it samples.)
    """
    if best == -np.inf:
        return InvalidInputError(
            "parameters forbid every token, by suppress_tokens, bad_words_ids, no_repeat_ngram_size, a forced token or "
            "a grammar; allowed: to leave one"
        )
    return GenerationError("the model's logits are not finite: there is no token to choose")


def _bias(biases: Sequence[tuple[int, float]]) -> LogitsProcessor:
    """As transformers' SequenceBiasLogitsProcessor of single tokens."""
    tokens = [token for token, _ in biases]
    values = np.asarray([bias for _, bias in biases], np.float32)

    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        scores[:, tokens] += values

    return process


def _repetition_penalty(penalty: float) -> LogitsProcessor:
    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        seen = np.take_along_axis(scores, ids, axis=1)
        np.put_along_axis(scores, ids, np.where(seen < 0, seen * penalty, seen / penalty), axis=1)

    return process


def _frequency_penalty(penalty: float) -> LogitsProcessor:
    """As text-generation-inference: the penalty times the token's share of all tokens so far, prompt included."""

    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        for row, row_scores in zip(ids, scores, strict=True):
            tokens, counts = np.unique(row, return_counts=True)
            row_scores[tokens] -= (penalty * counts / len(row)).astype(scores.dtype)

    return process


def _answer_penalties(presence: float, count: float, prompt_tokens: int) -> LogitsProcessor:
    """As OpenAI states them: of each token that the answer has, `presence`, and `count` for each time."""

    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        for row, row_scores in zip(ids[:, prompt_tokens:], scores, strict=True):
            tokens, counts = np.unique(row, return_counts=True)
            row_scores[tokens] -= (presence + count * counts).astype(scores.dtype)

    return process


def _no_repeat_ngram(size: int) -> LogitsProcessor:
    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        if ids.shape[1] < size:
            return
        ngrams = sliding_window_view(ids, size, axis=1)  # (rows, tokens - size + 1, size)
        begun = ids[:, None, ids.shape[1] - size + 1 :]  # the last size - 1 tokens
        rows, places = (ngrams[:, :, :-1] == begun).all(axis=2).nonzero()
        scores[rows, ngrams[rows, places, -1]] = -np.inf

    return process


def _bad_words(words: Sequence[Sequence[int]]) -> LogitsProcessor:
    """All words at once: a request may forbid a thousand, and every step asks for each."""
    always = [word[0] for word in words if len(word) == 1]
    longer = sorted((word for word in words if len(word) > 1), key=len)
    lengths = np.asarray([len(word) for word in longer], np.int64)
    starts = np.cumsum([0, *(lengths - 1)])  # where each word's beginning stands in the two arrays that follow
    beginnings = np.asarray([token for word in longer for token in word[:-1]], np.int64)
    offsets = np.asarray([offset for word in longer for offset in range(1 - len(word), 0)], np.int64)
    lasts = np.asarray([word[-1] for word in longer], np.int64)

    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        scores[:, always] = -np.inf
        # transformers asks for room for the whole word, not for its beginning
        fitting = int(np.searchsorted(lengths, ids.shape[1], side="right"))
        if fitting:
            end = starts[fitting]
            alike = ids[:, offsets[:end]] == beginnings[:end]  # (rows, tokens of all beginnings)
            rows, found = np.logical_and.reduceat(alike, starts[:fitting], axis=1).nonzero()
            scores[rows, lasts[found]] = -np.inf

    return process


def _min_length(min_length: int, eos: Sequence[int]) -> LogitsProcessor:
    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        if ids.shape[1] < min_length:
            scores[:, list(eos)] = -np.inf

    return process


def _forced(at_length: int, tokens: Sequence[int]) -> LogitsProcessor:
    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        if ids.shape[1] == at_length:
            scores.fill(-np.inf)
            scores[:, list(tokens)] = 0.0

    return process


def _suppressed(tokens: Sequence[int], only_at: int | None = None) -> LogitsProcessor:
    def process(ids: np.ndarray, scores: np.ndarray) -> None:
        if only_at is None or ids.shape[1] == only_at:
            scores[:, list(tokens)] = -np.inf

    return process
