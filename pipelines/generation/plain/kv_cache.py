"""KvCache: the keys and values of all tokens that a decoder has read; CacheLayout: their names and shapes in a graph.

Optimum names them `past_key_values.{layer}.key` and `.value` in a decoder-only graph, and in the decoder of an
encoder-decoder `past_key_values.{layer}.decoder.key` (grows by a token each step) and `.encoder.key` (computed once
from the source); the outputs are called `present` instead of `past_key_values`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from pipelines.errors import ArtifactError
from pipelines.runtime.session import InferenceSession

_PAST = re.compile(r"past_key_values\.\d+\.(?:(decoder|encoder)\.)?(?:key|value)")


@dataclass(frozen=True)
class CacheLayout:
    """The cache inputs of a graph: `growing` and `fixed` map a name to an empty array (0, kv_heads, 0, head_dim)."""

    growing: Mapping[str, np.ndarray]
    fixed: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, session: InferenceSession, also_fed: Sequence[str]) -> Self:
        """Read the graph's signature; raises ArtifactError for one that is not a decoder as Optimum exports it.

        `also_fed` names the inputs beside the cache that the caller feeds.
        """
        growing: dict[str, np.ndarray] = {}
        fixed: dict[str, np.ndarray] = {}
        for name, shape in session.input_shapes.items():
            if name in also_fed:
                continue
            matched = _PAST.fullmatch(name)
            if not matched or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
                raise ArtifactError(
                    f"{session.name} has an input {name} {list(shape)} that no supported decoder has; allowed: "
                    f"{', '.join(also_fed)} and past_key_values.N.key/value (batch, heads, tokens, head_dim)"
                )
            kind = fixed if matched[1] == "encoder" else growing
            kind[name] = np.zeros((0, shape[1], 0, shape[3]), session.input_types[name])
        if not growing:
            raise ArtifactError(f"{session.name} has no past_key_values inputs; export it with a key-value cache")
        return cls(growing, fixed)


@dataclass(frozen=True)
class KvCache:
    """The cache of the rows of one request: arrays (rows, kv_heads, tokens, head_dim) by input name.

    `fixed` also holds the other inputs that all steps share (the encoder's output and its mask). No step writes to a
    cache, so several sequences may continue from the same one.
    """

    growing: Mapping[str, np.ndarray]
    fixed: Mapping[str, np.ndarray]
    n_tokens: int

    def grown(self, outputs: Mapping[str, np.ndarray], n_tokens: int) -> Self:
        """The cache after a step that read `n_tokens` more tokens in every row."""
        growing = {name: outputs[_present(name)] for name in self.growing}
        fixed = dict(self.fixed)
        if self.n_tokens == 0:  # after the first step, the graph returns dummies under these names
            fixed |= {name: outputs[_present(name)] for name in self.fixed if name.startswith("past_key_values")}
        return replace(self, growing=growing, fixed=fixed, n_tokens=self.n_tokens + n_tokens)

    def select(self, rows: np.ndarray) -> Self:
        """The cache of new rows, each of which continues row `rows[i]` of this one."""
        before = len(next(iter(self.growing.values())))
        growing = {name: array[rows] for name, array in self.growing.items()}
        # All rows belong to one source: reordering leaves `fixed` as it is.
        same = len(rows) == before
        return replace(
            self, growing=growing, fixed=self.fixed if same else {name: a[rows] for name, a in self.fixed.items()}
        )


def empty_cache(layout: CacheLayout, rows: int, fixed: Mapping[str, np.ndarray] | None = None) -> KvCache:
    """A cache of `rows` rows without tokens; `fixed` holds the further inputs that all steps share."""
    growing = {name: _of_rows(array, rows) for name, array in layout.growing.items()}
    source = {name: _of_rows(array, rows) for name, array in layout.fixed.items()}
    return KvCache(growing, source | dict(fixed or {}), n_tokens=0)


def _of_rows(empty: np.ndarray, rows: int) -> np.ndarray:
    return np.zeros((rows, *empty.shape[1:]), empty.dtype)


def _present(name: str) -> str:
    return name.replace("past_key_values", "present", 1)
