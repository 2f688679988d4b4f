"""CausalSlots: a decoder-only slot graph (export.graphs.slot_graph) over one preallocated KV cache buffer.

A slot is a row of that buffer, `max_tokens` long. A step reads new tokens into neighbouring slots, each at its own
length: no row is padded, and no sequence that begins, grows or ends copies any cache.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import ArtifactError
from pipelines.generation.slots.buffer_copy import BufferCopy
from pipelines.generation.slots.lazy_zeros import lazy_zeros
from pipelines.runtime.session import InferenceSession

_FED = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_at")


class CausalSlots:
    """Raises ArtifactError for a graph that is no slot graph. Not thread-safe: one thread may read at a time."""

    def __init__(self, session: InferenceSession, slots: int, max_tokens: int) -> None:
        self.slots, self.max_tokens = slots, max_tokens
        self._session = session
        vocab = session.output_shapes["logits"][-1]
        caches = [name for name in session.input_names if name not in _FED]
        if not isinstance(vocab, int) or not caches or "seqlens_k" not in session.input_names:
            raise ArtifactError(f"{session.name} does not keep its cache in slots; export it again")
        self.vocab = vocab
        # Memory is resident from the first write on: an unused slot, or the unused end of one, costs nothing.
        self._arrays: dict[str, np.ndarray] = {}  # the buffers in CPU memory
        self._buffers = {name: self._buffer(name) for name in caches}
        self._copy = None if self._arrays else BufferCopy(self._buffers, session.config)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    def read(self, first: int, ids: np.ndarray, lengths: np.ndarray, logits_at: np.ndarray) -> np.ndarray:
        """Read `ids`, (rows, tokens) int64, into the slots from `first` on, which hold `lengths`, (rows,) int64.

        As SlotModel.read: the logits of the tokens `logits_at`, (n,) int64, of each row: (rows, n, vocab) float32.
        """
        rows, tokens = ids.shape
        # A full slot in between reads a token too: it must not write beyond its end.
        seqlens_k = np.minimum(lengths + tokens, self.max_tokens).astype(np.int32) - 1
        feeds = {
            "input_ids": ids,
            "position_ids": np.minimum(lengths[:, None] + np.arange(tokens), self.max_tokens - 1),
            "seqlens_k": seqlens_k,
            "total_sequence_length": np.asarray(seqlens_k.max() + 1, np.int32),
            "logits_at": logits_at,
        }
        logits = np.empty((rows, len(logits_at), self.vocab), np.float32)
        binding = self._binding(first, rows)
        for name in _FED:
            if name in self._session.input_names:
                binding.bind_cpu_input(name, feeds[name])
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_bound(binding)
        return logits

    def open(self, sources: Mapping[int, Sequence[int]]) -> Mapping[int, Exception]:
        """As SlotModel.open: nothing, as there is no encoder."""
        return {}

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int, start: int = 0) -> None:
        """As SlotModel.copy."""
        if self._copy is not None:
            self._copy(sources, targets)
        for array in self._arrays.values():
            array[targets, :, start:tokens] = array[sources, :, start:tokens]  # the right side is a copy

    def save(self, slot: int, tokens: int) -> Any:
        """As SlotModel.save."""
        if self._copy is not None:
            return self._copy.save(slot)
        return {name: array[slot, :, :tokens].copy() for name, array in self._arrays.items()}

    def restore(self, slot: int, saved: Any) -> None:
        """As SlotModel.restore."""
        if self._copy is not None:
            self._copy.restore(slot, saved)
            return
        for name, array in self._arrays.items():
            array[slot, :, : saved[name].shape[1]] = saved[name]

    def _buffer(self, name: str) -> "onnxruntime.OrtValue":
        import onnxruntime

        _, heads, _, width = (int(size) if isinstance(size, int) else 0 for size in self._session.input_shapes[name])
        shape, dtype = [self.slots, heads, self.max_tokens, width], self._session.input_types[name]
        if self._session.memory == "cpu":
            self._arrays[name] = lazy_zeros(tuple(shape), dtype)
            return onnxruntime.OrtValue.ortvalue_from_numpy(self._arrays[name])  # the same memory
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._session.memory, 0)

    def _binding(self, first: int, rows: int) -> "onnxruntime.IOBinding":
        """The binding of neighbouring slots, made once: past and present are the same memory."""
        if (first, rows) not in self._bindings:
            binding = self._session.binding()
            for name, buffer in self._buffers.items():
                dtype = self._session.input_types[name]
                shape = (rows, *buffer.shape()[1:])
                start = buffer.data_ptr() + first * int(np.prod(shape[1:])) * dtype.itemsize
                where = (self._session.memory, 0, dtype, shape, start)
                binding.bind_input(name, *where)
                binding.bind_output(name.replace("past_key_values", "present", 1), *where)
            self._bindings[first, rows] = binding
        return self._bindings[first, rows]
