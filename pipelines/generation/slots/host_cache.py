"""HostCache: KV cache slots in CPU memory, which numpy copies."""

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


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


def lazy_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `np.zeros`, in small pages, each resident from the first write on.

    numpy asks the kernel for pages of 2 MB. The first token of a slot writes one row of each layer and head, a megabyte
    apart: with such pages it makes the whole slot resident, a gigabyte for eight slots of 4,096 tokens. Memory that the
    allocator reuses is cleared, and so resident, at once. Small pages cost about 5% of a step's time (SmolLM2-135M in
    int8, four slots of 512 and of 1,536 tokens, two cores).
    """
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = mmap.mmap(-1, max(1, n_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, count=int(np.prod(shape))).reshape(shape)  # keeps the memory alive
