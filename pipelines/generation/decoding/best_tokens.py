"""Best tokens: the next token of a sequence from the most likely ones alone, where these decide it.

A step's logits lie on the device: (rows, vocab) float32, megabytes. The token that `sequence_state.advance` chooses
from all of them is found here from a few, or not at all: the caller then copies the row. The same tokens are kept with
the same scores, so that the same draw takes the same one.

Every token that is left out scores at most as much as the last one that is there. Processors that only lower scores
leave it there.
"""

from collections.abc import Sequence

import numpy as np

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.logits import LogitsProcessor, only_lowers
from pipelines.generation.decoding.sampling import Sampler, Warper

_SPARE = 64  # tokens beyond those that are needed: as many may be forbidden, or lowered
_NUCLEUS = 256  # tokens among which those of `top_p` are looked for
_MOST = 1024  # more are no longer few
_ROUNDING = 3e-5  # an upper bound of the error of up to _NUCLEUS summed probabilities in float32
_RESOLUTION = 2.0**-22  # of a float32, twice over: the error of a logarithm of a mass, relative


def tokens_needed(config: GenerationConfig, top_tokens: int, *, processed: bool) -> int | None:
    """How many of the most likely tokens will decide a step, most likely; None where all logits must be looked at.

    `processed` says whether the request has logits processors, `top_tokens` how many tokens it wants to see.
    """
    if processed and not only_lowers(config):
        return None
    needed: int | None
    if not config.do_sample:
        needed = 1
    elif config.top_k > 0:
        needed = config.top_k + 1  # the last one is the bound of the others
    else:
        nucleus = config.top_p < 1.0 and config.min_p is None and config.typical_p >= 1.0
        needed = _NUCLEUS if nucleus and not processed else None
    if needed is None:
        return None
    needed = max(needed + (_SPARE if processed else 0), top_tokens)
    return needed if needed <= _MOST else None


def draws_from_all(config: GenerationConfig, *, processed: bool) -> bool:
    """Whether a step draws one of all tokens, changed by the temperature alone."""
    plain = config.top_k == 0 and config.top_p == 1.0 and config.min_p is None and config.typical_p >= 1.0
    return config.do_sample and plain and not processed


def temperature_of(config: GenerationConfig) -> float:
    """The temperature at which the mass of all tokens is needed."""
    return config.temperature if config.do_sample and config.top_k == 0 else 1.0


class BestTokens:
    """The most likely tokens of one row: `scores` (k,) float32, best first, `tokens` (k,) int64, of `vocab` in all.

    `tempered` is the logarithm of the summed exponentials of all logits over the temperature.
    """

    def __init__(self, scores: np.ndarray, tokens: np.ndarray, tempered: float, vocab: int) -> None:
        self.scores, self.tokens, self.tempered, self.vocab = scores, tokens, tempered, vocab
        self.bound = scores[-1] if len(scores) < vocab else np.float32(-np.inf)

    def choose(
        self,
        config: GenerationConfig,
        ids: np.ndarray,
        processors: Sequence[LogitsProcessor],
        warpers: Sequence[Warper],
        sampler: Sampler,
    ) -> int | None:
        """The next token; None where these tokens do not decide it, and then nothing was drawn.

        `ids` are the tokens so far, (1, tokens) int64.
        """
        if not np.isfinite(self.tempered) or not np.isfinite(self.scores[0]):
            return None
        if not config.do_sample and not processors:
            return int(self.tokens[0])
        order = np.argsort(self.tokens)  # as they lie in the vocabulary
        tokens, scores = self.tokens[order], self._processed(processors, ids)[order]
        if not config.do_sample:
            best = int(scores.argmax())
            return int(tokens[best]) if scores[best] > self.bound else None
        if config.top_k > 0:
            kept = self._largest(scores, config.top_k)
        else:
            scores = scores if config.temperature == 1.0 else scores / np.float32(config.temperature)
            kept, warpers = self._nucleus(scores, config), ()
        if kept is None:
            return None
        left = scores[None, kept]
        for warp in warpers:
            warp(left)
        return int(tokens[kept][sampler.draw(left[0])])

    def _processed(self, processors: Sequence[LogitsProcessor], ids: np.ndarray) -> np.ndarray:
        """The scores (k,) after the processors, which take a whole row."""
        if not processors:
            return self.scores
        row = np.full((1, self.vocab), -np.inf, np.float32)
        row[0, self.tokens] = self.scores
        for process in processors:
            process(ids, row)
        processed: np.ndarray = row[0, self.tokens]
        return processed

    def _largest(self, scores: np.ndarray, count: int) -> np.ndarray | None:
        """Which of `scores`, (k,), are the `count` largest, with all equals; None where others may be among them."""
        if count >= self.vocab:
            return np.arange(len(scores)) if len(scores) == self.vocab else None
        if count > len(scores):
            return None
        least = np.partition(scores, -count)[-count]
        return np.flatnonzero(scores >= least) if least > self.bound else None

    def _nucleus(self, scores: np.ndarray, config: GenerationConfig) -> np.ndarray | None:
        """Which of `scores`, (k,) over the temperature, hold `top_p` of the mass; None where rounding decides that."""
        ascending = np.argsort(scores, kind="stable")
        probabilities = np.exp(scores[ascending].astype(np.float64) - self.tempered)
        before = np.cumsum(probabilities[::-1])[::-1] - probabilities  # the mass of the more likely tokens
        kept = before < config.top_p
        kept[-1] = True
        close = np.abs(before[:-1] - config.top_p) < _ROUNDING + abs(self.tempered) * _RESOLUTION
        if close.any() or (len(scores) < self.vocab and kept[0]):
            return None
        least = scores[ascending[kept][0]]
        bound = self.bound if config.temperature == 1.0 else self.bound / np.float32(config.temperature)
        return np.sort(ascending[kept]) if least > bound else None
