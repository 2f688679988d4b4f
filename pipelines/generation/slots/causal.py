"""CausalSlots: a decoder-only slot graph (export.graphs.slot_graph) over one preallocated KV cache buffer.

A slot is a row of that buffer, `max_tokens` long. A step reads new tokens into neighbouring slots, each at its own
length: no row is padded, and no sequence that begins, grows or ends copies any cache. On a device the buffer and the
logits stay there.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import ArtifactError
from pipelines.generation.adapters.graph import PREFIX
from pipelines.generation.adapters.stack import AdapterStack
from pipelines.generation.decoding.step_logits import HostLogits, StepLogits
from pipelines.generation.slots.device.captured_steps import CapturedSteps
from pipelines.generation.slots.device.logits import DeviceLogits, LogitsReader
from pipelines.generation.slots.slot_cache import RUN_TOKENS, open_cache
from pipelines.runtime.session import InferenceSession

_FED = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_at")


class CausalSlots:
    """Raises ArtifactError for a graph that is no slot graph. Not thread-safe: one thread may read at a time.

    `on_device` keeps cache and logits where ONNX Runtime alone reaches them; None: where they are not in CPU memory.
    Where the session `captures`, so are steps of one token (see slots.device.captured_steps). `stack` feeds a graph
    with adapters, in CPU memory.
    """

    def __init__(
        self,
        session: InferenceSession,
        slots: int,
        max_tokens: int,
        on_device: bool | None = None,
        stack: AdapterStack | None = None,
    ) -> None:
        self.slots, self.max_tokens, self.reads_ahead = slots, max_tokens, True
        self.adapters, self._stack = np.zeros(slots, np.int64), stack
        self._session = session
        *axes, vocab = session.output_shapes["logits"]
        caches = [name for name in session.input_names if name not in _FED and not name.startswith(PREFIX)]
        if not isinstance(vocab, int) or not caches or "seqlens_k" not in session.input_names:
            raise ArtifactError(f"{session.name} does not keep its cache in slots; export it again")
        self.vocab = vocab
        self.run_tokens = RUN_TOKENS[session.memory]
        self._numbers_tokens = len(axes) == 1  # earlier exports take `logits_at` of every row: (rows, n, vocab)
        dtypes = {name: session.input_types[name] for name in caches}
        shapes = {name: self._shape(name) for name in caches}
        device = session.memory != "cpu" if on_device is None else on_device
        self._cache = open_cache(dtypes, shapes, session.config, device=device)
        self._reader = LogitsReader(vocab, session.config) if device else None
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}
        self._captured: CapturedSteps | None = None
        if self._reader is not None and self._numbers_tokens and session.captures:
            most = {"total_sequence_length": max_tokens}
            self._captured = CapturedSteps(session, self._bind_caches, self._reader, slots, most)
        # Bound here, so that callers reach the cache's own methods.
        self.copy, self.save, self.restore = self._cache.copy, self._cache.save, self._cache.restore

    def step_rows(self, first: int, end: int) -> tuple[int, int]:
        """As SlotModel.step_rows: what a captured step covers."""
        return (first, end) if self._captured is None else self._captured.cover(first, end)

    def read(
        self, first: int, ids: np.ndarray, lengths: np.ndarray, logits_at: np.ndarray, counts: np.ndarray | None = None
    ) -> StepLogits:
        """As SlotModel.read."""
        tokens = ids.shape[1]
        # A full slot in between reads a token too: it must not write beyond its end.
        ends = np.minimum(lengths + (tokens if counts is None else counts), self.max_tokens)
        feeds = {
            "input_ids": ids,
            "position_ids": np.minimum(lengths[:, None] + np.arange(tokens), self.max_tokens - 1),
            "seqlens_k": ends.astype(np.int32) - 1,
        }
        longest = {"total_sequence_length": int(ends.max())}
        if self._captured is not None and tokens == 1:
            replayed = self._captured.read(first, feeds, longest, logits_at.tolist())
            if replayed is not None:
                return replayed
        with self._session.share():
            return self._read(first, ids, feeds, longest, logits_at)

    def _read(
        self,
        first: int,
        ids: np.ndarray,
        feeds: dict[str, np.ndarray],
        longest: Mapping[str, int],
        logits_at: np.ndarray,
    ) -> StepLogits:
        """Read without a CUDA graph."""
        rows, tokens = ids.shape
        columns = None if self._numbers_tokens else np.unique(logits_at % tokens)
        feeds |= {name: np.asarray(length, np.int32) for name, length in longest.items()}
        feeds["logits_at"] = logits_at if columns is None else columns
        binding = self._binding(first, rows)
        if self._stack is not None:
            self._stack.bind(binding, self.adapters[first : first + rows], tokens)
        for name in _FED:
            if name in self._session.input_names:
                binding.bind_cpu_input(name, feeds[name])
        if self._reader is not None and columns is None:
            address = self._reader.room(len(logits_at))
            shape = (len(logits_at), self.vocab)
            binding.bind_output("logits", self._session.memory, 0, np.float32, shape, address)
            self._session.run_bound(binding)
            return DeviceLogits(self._reader, address, len(logits_at), range(len(logits_at)))
        head = (len(logits_at),) if columns is None else (rows, len(columns))
        logits = np.empty((*head, self.vocab), np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_bound(binding)
        if columns is not None:
            logits = logits[logits_at // tokens, np.searchsorted(columns, logits_at % tokens)]
        return HostLogits(logits)

    def open(self, sources: Mapping[int, Sequence[int]]) -> Mapping[int, Exception]:
        """As SlotModel.open: nothing, as there is no encoder."""
        return {}

    def release_memory(self) -> None:
        """As SlotModel.release_memory: a read beside the slots, into a cache of its own."""
        adapted = {} if self._stack is None else self._stack.blank_feeds()
        self._session.release_memory(self._session.blank_feeds(total_sequence_length=1) | adapted)

    def _shape(self, name: str) -> tuple[int, ...]:
        _, heads, _, width = (int(size) if isinstance(size, int) else 0 for size in self._session.input_shapes[name])
        return self.slots, heads, self.max_tokens, width

    def _binding(self, first: int, rows: int) -> "onnxruntime.IOBinding":
        """The binding of neighbouring slots, made once: past and present are the same memory."""
        if (first, rows) not in self._bindings:
            self._bindings[first, rows] = self._bind_caches(first, rows)
        return self._bindings[first, rows]

    def _bind_caches(self, first: int, rows: int) -> "onnxruntime.IOBinding":
        binding = self._session.binding()
        for name in self._session.input_names:
            if name in self._cache.dtypes:
                place = self._cache.place(name, first, rows)
                binding.bind_input(name, *place)
                binding.bind_output(name.replace("past_key_values", "present", 1), *place)
        return binding
