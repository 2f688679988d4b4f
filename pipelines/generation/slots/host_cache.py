"""HostCache: KV cache slots in CPU memory, which numpy copies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.generation.slots.lazy_zeros import lazy_zeros


class HostCache:
    """A buffer (slots, heads, max_tokens, head_dim) for each of `dtypes`, by name.

    `dtypes` are the buffers' by name. Memory is resident from the first write on: an unused slot, or the unused end of
    one, costs nothing.
    """

    memory = "cpu"

    def __init__(self, dtypes: "Mapping[str, np.dtype[Any]]", shapes: Mapping[str, Sequence[int]]) -> None:
        self.dtypes = dict(dtypes)
        self._arrays = {name: lazy_zeros(tuple(shapes[name]), dtype) for name, dtype in dtypes.items()}

    def place(self, name: str, first: int, rows: int) -> "tuple[str, int, np.dtype[Any], tuple[int, ...], int]":
        """What binds some neighbouring slots of a buffer: device, its number, dtype, shape, address."""
        view = self._arrays[name][first : first + rows]
        return self.memory, 0, view.dtype, view.shape, view.ctypes.data

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int, start: int = 0) -> None:
        """As SlotModel.copy."""
        for array in self._arrays.values():
            array[targets, :, start:tokens] = array[sources, :, start:tokens]  # the right side is a copy

    def save(self, slot: int, tokens: int) -> dict[str, np.ndarray]:
        """As SlotModel.save."""
        return {name: array[slot, :, :tokens].copy() for name, array in self._arrays.items()}

    def restore(self, slot: int, saved: Mapping[str, np.ndarray]) -> None:
        """As SlotModel.restore."""
        for name, array in self._arrays.items():
            array[slot, :, : saved[name].shape[1]] = saved[name]
