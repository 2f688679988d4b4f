"""Sampling: warpers that shape the distribution of the next token, and reproducible draws from it.

The warpers equal transformers' LogitsWarper of the same name and run in its order; like the logits processors they
change `scores`, (rows, vocab) float32, in place. Removed tokens become -inf.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.logits import log_softmax

_FIRST_LOOK = 256  # most likely tokens that are sorted first to find a share of the mass
_LOWEST = np.finfo(np.float32).min
_ROUNDING = 1e-4  # an upper bound of the rounding error of summed probabilities

Warper = Callable[[np.ndarray], None]


def warpers(config: GenerationConfig) -> list[Warper]:
    """The warpers that a sampling config asks for, in order; empty without sampling."""
    if not config.do_sample:
        return []
    # A beam needs a token beside every end of sequence, to continue with.
    keep = 1 if config.num_beams == 1 else max(2, len(config.eos_token_id) + 1)
    chain: list[Warper] = []
    if config.temperature != 1.0:
        chain.append(_temperature(config.temperature))
    if config.top_k > 0:
        chain.append(_top_k(max(config.top_k, keep)))
    if config.top_p < 1.0:
        chain.append(_top_p(config.top_p, keep))
    if config.min_p is not None:
        chain.append(_min_p(config.min_p, keep))
    if config.typical_p < 1.0:
        chain.append(_typical(config.typical_p, keep))
    return chain


class Sampler:
    """Draws of one sequence. The same seed and sequence number give the same draws, on any machine, in any batch."""

    def __init__(self, seed: int, sequence: int = 0) -> None:
        self._random = np.random.Generator(np.random.Philox(key=(sequence << 64) | seed))
        self._share: float | None = None

    @property
    def share(self) -> float:
        """What decides the next `draw`, below 1: the share of the mass, summed token by token, that it passes."""
        if self._share is None:
            self._share = self._random.random()
        return self._share

    def drawn(self) -> None:
        """The next token was drawn elsewhere, with `share`."""
        self._share = None

    def draw(self, scores: np.ndarray) -> int:
        """One token id from the softmax of `scores`, (vocab,)."""
        cumulative = np.cumsum(np.exp(scores - scores.max()), dtype=np.float64)
        total = cumulative[-1]
        point = min(self.share * total, np.nextafter(total, 0))  # the product can round up to the total
        self.drawn()
        return int(np.searchsorted(cumulative, point, side="right"))

    def draw_distinct(self, scores: np.ndarray, count: int) -> np.ndarray:
        """`count` different indices, drawn one after the other from the softmax of `scores`, (n,), without
        replacement: (count,) int64 in the order of the draws.
        """
        # The largest of scores plus Gumbel noise have exactly that distribution (Vieira 2014; Kool et al. 2019).
        noisy = scores + self._random.gumbel(size=scores.shape)
        return top(noisy, count)


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of `scores`, (n,), largest first, the earlier one first among equals."""
    if count == 0:
        return np.empty(0, np.int64)
    if count < len(scores):
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    order = np.argsort(-scores[candidates], kind="stable")[:count]
    indices: np.ndarray = candidates[order]
    return indices


def draw_each(
    scores: np.ndarray, samplers: Sequence[Sampler], chains: Sequence[Sequence[Warper]], top_ks: Sequence[int]
) -> list[int]:
    """One token for each row of `scores`, (rows, vocab), which it may overwrite, by the row's sampler and warpers.

    A row's token equals what its warpers and `Sampler.draw` choose alone. Where `top_k` is above 0, warpers run on the
    kept tokens only, not on the whole vocabulary.
    """
    bounded = [0 < count < scores.shape[1] for count in top_ks]
    least = bounds(scores, max(top_ks)) if any(bounded) else np.empty(0)
    tokens = []
    for row, (sampler, chain, count) in enumerate(zip(samplers, chains, top_ks, strict=True)):
        if not bounded[row]:
            kept, left = None, scores[row : row + 1]
        else:
            # A grammar may leave fewer tokens than `top_k`. The others, of no probability, would be most of the work.
            kept = np.flatnonzero(scores[row] >= max(least[row], _LOWEST))
            left = scores[row, kept]
            if len(left) > count:
                exact = left >= np.partition(left, -count)[-count]
                kept, left = kept[exact], left[exact]
            left = left[None]
        for warp in chain:
            warp(left)
        token = sampler.draw(left[0])
        tokens.append(token if kept is None else int(kept[token]))
    return tokens


def bounds(scores: np.ndarray, count: int) -> np.ndarray:
    """For each row of `scores`, (rows, n), a score that at least `count` elements reach, and few more: (rows,)."""
    rows, n = scores.shape
    # Each of the `count` best groups has an element that reaches the bound. More groups tighten it and cost time.
    groups = min(n, max(4 * count, n // 64))
    largest = scores[:, : n - n % groups].reshape(rows, -1, groups).max(axis=1)
    found: np.ndarray = np.partition(largest, -min(count, groups), axis=1)[:, -min(count, groups)]
    return found


def _temperature(temperature: float) -> Warper:
    def warp(scores: np.ndarray) -> None:
        np.divide(scores, temperature, out=scores)

    return warp


def _top_k(count: int) -> Warper:
    def warp(scores: np.ndarray) -> None:
        if count < scores.shape[-1]:
            threshold = np.partition(scores, -count, axis=-1)[:, -count, None]
            scores[scores < threshold] = -np.inf

    return warp


def _top_p(mass: float, keep: int) -> Warper:
    def warp(scores: np.ndarray) -> None:
        for row, probabilities in zip(scores, _softmax(scores), strict=True):
            likely = _leading(-row, probabilities, mass)
            ascending = likely[np.argsort(row[likely], kind="stable")]
            less_likely = max(0.0, 1 - float(probabilities[likely].sum())) if len(likely) < len(row) else 0.0
            cumulative = np.cumsum(probabilities[ascending], dtype=np.float32) + np.float32(less_likely)
            kept = cumulative > np.float32(1 - mass)
            kept[-keep:] = True
            _keep(row, ascending[kept])

    return warp


def _min_p(share: float, keep: int) -> Warper:
    def warp(scores: np.ndarray) -> None:
        probabilities = _softmax(scores)
        removed = probabilities < share * probabilities.max(axis=-1, keepdims=True)
        if keep > 1:  # the most likely token is kept in any case
            for row, row_removed in zip(scores, removed, strict=True):
                row_removed[top(row, keep)] = False
        scores[removed] = -np.inf

    return warp


def _typical(mass: float, keep: int) -> Warper:
    def warp(scores: np.ndarray) -> None:
        log_probabilities = log_softmax(scores)
        all_probabilities = np.exp(log_probabilities)
        with np.errstate(invalid="ignore"):  # 0 * -inf, which counts as nothing
            entropy = -np.nansum(all_probabilities * log_probabilities, axis=-1, keepdims=True)
        surprises = np.abs(-log_probabilities - entropy)
        for row, surprise, probabilities in zip(scores, surprises, all_probabilities, strict=True):
            typical = _leading(surprise, probabilities, mass)
            order = typical[np.argsort(surprise[typical], kind="stable")]  # most typical first
            cumulative = np.cumsum(probabilities[order], dtype=np.float32)
            last = min(int((cumulative < mass).sum()), len(order) - 1)
            kept = surprise[order] <= surprise[order[last]]
            kept[:keep] = True
            _keep(row, order[kept])

    return warp


def _leading(keys: np.ndarray, probabilities: np.ndarray, mass: float) -> np.ndarray:
    """Indices, ascending, of the smallest of `keys`, (n,), with all equals: more than `mass` of `probabilities`, (n,).

    Few tokens of a large vocabulary hold most of the mass: only these are sorted.
    """
    count = _FIRST_LOOK
    while count < len(keys):
        found = np.flatnonzero(keys <= -bounds(-keys[None], count)[0])
        if probabilities[found].sum() > mass + _ROUNDING:
            return found
        count *= 8
    return np.arange(len(keys))


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def _keep(scores: np.ndarray, kept: np.ndarray) -> None:
    """Set to -inf all scores, (n,), outside the indices `kept`."""
    left = scores[kept]
    scores.fill(-np.inf)
    scores[kept] = left
