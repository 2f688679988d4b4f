"""Rows of different lengths as one rectangle, and what that costs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding


@dataclass(frozen=True, eq=False, slots=True)
class EncoderRow:
    """One line of an encoder's batch, unpadded; `type_ids` None stands for zeros."""

    encoding: Encoding
    input_ids: np.ndarray  # (tokens,) int64
    token_type_ids: np.ndarray | None = None  # (tokens,) int64

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def max_new_tokens(self) -> int:
        """An encoder writes none."""
        return 0


def padded_tokens(lengths: Sequence[int]) -> int:
    """What a batch of rows of these lengths costs: every row is as long as the longest."""
    return max(lengths, default=0) * len(lengths)


def pad(rows: Sequence[EncoderRow], pad_token_id: int, names: Collection[str]) -> dict[str, np.ndarray]:
    """The inputs called `names` of a graph, each (rows, longest) int64, padded on the right.

    The right is right for every encoder, whatever side its tokenizer pads: positions then count from each row's start,
    and padding, masked out, changes nothing in front of it.
    """
    lengths = np.array([row.n_tokens for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]  # (rows, longest)
    feeds = {}
    if "input_ids" in names:
        feeds["input_ids"] = _spread([row.input_ids for row in rows], real, fill=pad_token_id)
    if "attention_mask" in names:
        feeds["attention_mask"] = real.astype(np.int64)
    if "token_type_ids" in names:
        given = [row.token_type_ids for row in rows if row.token_type_ids is not None]
        # All rows of a model come from one tokenizer: either each has type ids or none has.
        feeds["token_type_ids"] = _spread(given, real, fill=0) if given else np.zeros(real.shape, np.int64)
    return feeds


def _spread(values: Sequence[np.ndarray], real: np.ndarray, fill: int) -> np.ndarray:
    """The values of all rows laid where `real` is true, `fill` elsewhere."""
    padded = np.full(real.shape, fill, np.int64)
    padded[real] = np.concatenate(values)
    return padded
