"""StepLogits: the logits of a step, one row for each token that was asked for, in CPU memory or on a device."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Best:
    """The most likely tokens of each row, and what all tokens of it come to.

    `scores` (rows, k) float32, best first, and of equal ones the smaller token first; `tokens` (rows, k) int64; `total`
    and `tempered` (rows,) float32, the logarithms of the summed exponentials of all logits, and of all logits over the
    row's temperature.
    """

    scores: np.ndarray
    tokens: np.ndarray
    total: np.ndarray
    tempered: np.ndarray


class StepLogits(ABC):
    """The logits of a step: a row for each token that was asked for."""

    @abstractmethod
    def rows(self, wanted: Sequence[int]) -> np.ndarray:
        """All logits of some rows, (wanted, vocab) float32, which the caller may overwrite if it asks once."""


class HostLogits(StepLogits):
    """Logits (rows, vocab) float32 in CPU memory."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def rows(self, wanted: Sequence[int]) -> np.ndarray:
        everything = len(wanted) == len(self._values) and all(row == index for index, row in enumerate(wanted))
        return self._values if everything else self._values[list(wanted)]


class RankedLogits(StepLogits):
    """Logits on a device, of which the best are copied at less cost than all; a row has `vocab` of them."""

    vocab: int

    @abstractmethod
    def best(self, wanted: Sequence[int], count: int, temperatures: Sequence[float]) -> Best:
        """The `count` most likely tokens of some rows; `temperatures` has one for each of them."""

    @abstractmethod
    def draw(self, wanted: Sequence[int], temperatures: Sequence[float], shares: Sequence[float]) -> list[int | None]:
        """A token of some rows, drawn from all logits as `Sampler.draw` does with these shares; None where rounding
        decides which.
        """
