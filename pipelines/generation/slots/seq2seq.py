"""Seq2SeqSlots: the slot graphs of an encoder-decoder (export.graphs.seq2seq_slot_graph) over preallocated buffers.

A slot holds up to `max_tokens` decoder tokens, as a decoder-only model's does, and the keys and values of one source,
which `open` computes. A step reads a token of neighbouring slots, each at its own length and with its own source; its
cost depends on these lengths, not on the size of the buffers. On a device buffers, encoded sources and logits stay
there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import ArtifactError, InputTooLongError
from pipelines.generation.decoding.step_logits import HostLogits, StepLogits
from pipelines.generation.slots.device.cache import DeviceCache
from pipelines.generation.slots.device.captured_steps import CapturedSteps
from pipelines.generation.slots.device.logits import DeviceLogits, LogitsReader
from pipelines.generation.slots.device.sources import DeviceSources
from pipelines.generation.slots.slot_cache import RUN_TOKENS, SlotCache, open_cache
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig, parts


class Seq2SeqSessions:
    """Encoder and decoder; raises ArtifactError for graphs that export.graphs.seq2seq_slot_graph does not describe."""

    def __init__(self, encoder: InferenceSession, decoder: InferenceSession) -> None:
        self.encoder, self.decoder = encoder, decoder
        vocab = self.decoder.output_shapes["logits"][-1]
        _, heads, _, width = self.decoder.input_shapes.get("past_key_values.0.encoder.key", (0,) * 4)
        if not isinstance(vocab, int) or not isinstance(heads, int) or not isinstance(width, int) or not heads:
            raise ArtifactError(f"{self.decoder.name} does not keep its cache in slots; export it again")
        self.vocab, self.heads, self.width = vocab, heads, width
        self.caches = tuple(name for name in self.decoder.input_names if name.startswith("past_key_values."))
        parts = len(self.caches) // 2  # keys and values of every layer
        self.own, self.cross = self.caches[:parts], self.caches[parts:]
        self.fed = tuple(name for name in self.decoder.input_names if name not in self.caches)
        self.ends = tuple(name for name in self.fed if name.startswith("source_end."))
        self.stepwise = tuple(name for name in self.fed if name not in self.ends)

    @classmethod
    def of(cls, artifact: ModelArtifact, config: SessionConfig) -> Self:
        graphs = [artifact.graph(role) for role in ("encoder", "decoder")]
        return cls(*map(InferenceSession, graphs, parts(config, graphs)))

    def encode(self, sources: Sequence[Sequence[int]]) -> np.ndarray:
        """The keys and values of some sources, (2 x layers, sources, heads, longest, head_dim)."""
        return self.encoder.run(encoder_feeds(sources))["cross_key_values"]

    def cache(self, names: Sequence[str], slots: int, tokens: int, *, device: bool) -> SlotCache:
        """Buffers (slots, heads, tokens, head_dim) for these inputs."""
        dtypes = {name: self.decoder.input_types[name] for name in names}
        shape = (slots, self.heads, tokens, self.width)
        return open_cache(dtypes, dict.fromkeys(names, shape), self.decoder.config, device=device)


def encoder_feeds(sources: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Sources padded at their ends, (sources, longest) int64."""
    ids = np.zeros((len(sources), max(map(len, sources))), np.int64)
    mask = np.zeros_like(ids)
    for row, source in enumerate(sources):
        ids[row, : len(source)], mask[row, : len(source)] = source, 1
    return {"input_ids": ids, "attention_mask": mask}


class Seq2SeqSlots:
    """Sources have at most `max_source_tokens`. Not thread-safe: one thread may use it at a time.

    `on_device` keeps buffers and logits where ONNX Runtime alone reaches them; None: where they are not in CPU memory.
    Where the decoder's session `captures`, steps are captured (see slots.device.captured_steps).
    """

    def __init__(
        self,
        sessions: Seq2SeqSessions,
        slots: int,
        max_tokens: int,
        max_source_tokens: int,
        on_device: bool | None = None,
    ) -> None:
        self.slots, self.max_tokens, self.vocab = slots, max_tokens, sessions.vocab
        self.adapters = np.zeros(slots, np.int64)
        self.reads_ahead = False  # a read of several tokens is one run for each of them
        self._sessions, self._decoder, self._longest = sessions, sessions.decoder, max_source_tokens
        self.run_tokens = RUN_TOKENS[self._decoder.memory]
        device = self._decoder.memory != "cpu" if on_device is None else on_device
        self._own = sessions.cache(sessions.own, slots, max_tokens, device=device)
        self._cross = sessions.cache(sessions.cross, slots, max_source_tokens, device=device)
        self._ends = sessions.cache(sessions.ends, slots, 1, device=device)
        self._source_lengths = np.ones(slots, np.int64)
        self._sources = np.zeros(slots, np.int64)  # a number for the source that each slot holds
        self._opened = 0
        self._places = np.arange(max_tokens)
        self._bound: dict[tuple[int, int], _Bound] = {}
        self._reader: LogitsReader | None = None
        self._encoded: DeviceSources | None = None
        self._captured: CapturedSteps | None = None
        if isinstance(self._cross, DeviceCache) and isinstance(self._ends, DeviceCache):
            self._reader = LogitsReader(self.vocab, self._decoder.config)
            self._encoded = DeviceSources(sessions.encoder, self._cross, self._ends)
            if self._decoder.captures:
                most = {"total_sequence_length": max_tokens, "source_total_sequence_length": max_source_tokens}
                self._captured = CapturedSteps(self._decoder, self._bind_caches, self._reader, slots, most)

    def open(self, sources: Mapping[int, Sequence[int]]) -> Mapping[int, Exception]:
        """As SlotModel.open. Sources of similar lengths form a batch, which costs its longest row times its rows."""
        failed: dict[int, Exception] = {
            slot: InputTooLongError(f"has {len(source)} tokens; allowed: at most {self._longest}", ("inputs",))
            for slot, source in sources.items()
            if len(source) > self._longest
        }
        opened = sorted((one for one in sources.items() if one[0] not in failed), key=lambda one: len(one[1]))
        most = _BATCH_TOKENS[self._decoder.memory]
        while opened:
            count = _worth_a_batch([len(source) for _, source in opened], self.run_tokens, most)
            failed |= self._encode(opened[:count])
            opened = opened[count:]
        return failed

    def step_rows(self, first: int, end: int) -> tuple[int, int]:
        """As SlotModel.step_rows: what a captured step covers."""
        return (first, end) if self._captured is None else self._captured.cover(first, end)

    def read(
        self, first: int, ids: np.ndarray, lengths: np.ndarray, logits_at: np.ndarray, counts: np.ndarray | None = None
    ) -> StepLogits:
        """As SlotModel.read, token by token; padding is read, too, behind the content of its row."""
        rows, tokens = ids.shape
        address = 0 if self._reader is None else self._reader.room(tokens * rows)
        logits = np.empty((tokens * rows if self._reader is None else 0, self.vocab), np.float32)
        for token in range(tokens):
            # A full slot in between reads a token too: it must not write beyond its end.
            feeds = {
                "input_ids": ids[:, token : token + 1],
                "seqlens_k": np.minimum(lengths + token, self.max_tokens - 1).astype(np.int32),
                "source_seqlens_k": (self._source_lengths[first : first + rows] - 1).astype(np.int32),
            }
            longest = {
                "total_sequence_length": int(feeds["seqlens_k"].max()) + 1,
                "source_total_sequence_length": int(feeds["source_seqlens_k"].max()) + 1,
            }
            if self._captured is not None and tokens == 1:
                replayed = self._captured.read(first, feeds, longest, logits_at.tolist())
                if replayed is not None:
                    return replayed
            start = token * rows
            place = address + start * self.vocab * logits.itemsize if address else logits[start:].ctypes.data
            self._step(first, feeds, longest, place)
        places = logits_at % tokens * rows + logits_at // tokens
        if self._reader is not None:
            return DeviceLogits(self._reader, address, tokens * rows, places.tolist())
        return HostLogits(HostLogits(logits).rows(places.tolist()))

    def _step(self, first: int, feeds: dict[str, np.ndarray], longest: Mapping[str, int], place: int) -> None:
        """Read a token of each row without a CUDA graph; `place` is the address of its logits."""
        rows, memory = len(feeds["input_ids"]), "cpu" if self._reader is None else self._decoder.memory
        feeds |= {name: np.asarray(length, np.int32) for name, length in longest.items()}
        feeds["key_positions"] = self._places[: longest["total_sequence_length"]]
        bound = self._binding(first, rows)
        for name, array in bound.fed.items():
            array[...] = feeds[name]
        with self._decoder.share():
            for name in self._sessions.stepwise:
                if name not in bound.fed:
                    bound.binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
            bound.binding.bind_output("logits", memory, 0, np.float32, (rows, self.vocab), place)
            self._decoder.run_bound(bound.binding)

    def release_memory(self) -> None:
        """As SlotModel.release_memory: runs beside the slots, with a source and a cache of their own."""
        self._sessions.encoder.release_memory(encoder_feeds([[0]]))
        lengths = {"total_sequence_length": 1, "source_total_sequence_length": 1}
        self._decoder.release_memory(self._decoder.blank_feeds(**lengths))

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int, start: int = 0) -> None:
        """As SlotModel.copy; a source that the target holds already is not copied."""
        self._own.copy(sources, targets, tokens, start)
        origins, goals = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
        other = self._sources[origins] != self._sources[goals]
        if start == 0 and other.any():
            origins, goals = origins[other], goals[other]
            longest = int(self._source_lengths[origins].max())
            self._cross.copy(origins.tolist(), goals.tolist(), longest)
            self._ends.copy(origins.tolist(), goals.tolist(), 1)
            self._source_lengths[goals] = self._source_lengths[origins]
            self._sources[goals] = self._sources[origins]

    def save(self, slot: int, tokens: int) -> "_Saved":
        """As SlotModel.save."""
        longest = int(self._source_lengths[slot])
        parts = (self._own.save(slot, tokens), self._cross.save(slot, longest), self._ends.save(slot, 1))
        return _Saved(*parts, longest, int(self._sources[slot]))

    def restore(self, slot: int, saved: "_Saved") -> None:
        """As SlotModel.restore."""
        self._own.restore(slot, saved.own)
        self._cross.restore(slot, saved.cross)
        self._ends.restore(slot, saved.ends)
        self._source_lengths[slot], self._sources[slot] = saved.source_length, saved.source

    def _encode(self, batch: Sequence[tuple[int, Sequence[int]]]) -> dict[int, Exception]:
        """Encode one source into each slot of a batch; returns the errors of slots that failed."""
        sources = [source for _, source in batch]
        try:
            if self._encoded is None:
                encoded: Any = self._sessions.encode(sources)
            else:
                encoded = self._encoded.encode(encoder_feeds(sources))
        except Exception as error:
            if len(batch) == 1:
                return {batch[0][0]: error}
            # Encode one by one, to find the source that fails.
            return {slot: failure for one in batch for slot, failure in self._encode([one]).items()}
        for row, (slot, source) in enumerate(batch):
            if self._encoded is None:
                self._write(encoded[:, row], len(source), slot)
            else:
                self._encoded.write(encoded, row, len(source), slot)
            self._source_lengths[slot] = len(source)
            self._opened += 1
            self._sources[slot] = self._opened
        return {}

    def _write(self, encoded: np.ndarray, tokens: int, slot: int) -> None:
        """Write a source, (parts, heads, tokens, head_dim), into a slot in CPU memory."""
        self._cross.restore(slot, dict(zip(self._sessions.cross, encoded[:, :, :tokens], strict=True)))
        self._ends.restore(slot, dict(zip(self._sessions.ends, encoded[:, :, tokens - 1 : tokens], strict=True)))

    def _binding(self, first: int, rows: int) -> "_Bound":
        """The binding of neighbouring slots without logits, made once: past and present are the same memory."""
        if (first, rows) not in self._bound:
            bound = _Bound(self._bind_caches(first, rows), {})
            shapes = {"input_ids": (rows, 1), "seqlens_k": (rows,), "source_seqlens_k": (rows,)}
            shapes |= {"total_sequence_length": (), "source_total_sequence_length": ()}
            for name, shape in shapes.items() if self._reader is None else ():
                array = bound.fed[name] = np.zeros(shape, self._decoder.input_types[name])
                bound.binding.bind_input(name, "cpu", 0, array.dtype, shape, array.ctypes.data)
            self._bound[first, rows] = bound
        return self._bound[first, rows]

    def _bind_caches(self, first: int, rows: int) -> "onnxruntime.IOBinding":
        binding = self._decoder.binding()
        for names, cache in ((self._sessions.own, self._own), (self._sessions.cross, self._cross)):
            for name in names:
                place = cache.place(name, first, rows)
                binding.bind_input(name, *place)
                binding.bind_output(name.replace("past_key_values", "present", 1), *place)
        for name in self._sessions.ends:
            memory, number, dtype, (_, heads, _, width), address = self._ends.place(name, first, rows)
            binding.bind_input(name, memory, number, dtype, (rows, 1, heads * width), address)
        return binding


_PADDED = 0.25  # padding that a batch may have, relative to its real tokens, or as much as a run of its own costs
_BATCH_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Larger batches save nothing, by the memory of the session."""


def _worth_a_batch(lengths: Sequence[int], run_tokens: int, most_tokens: int) -> int:
    """How many sources of these lengths, ascending, one batch encodes faster than several runs."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        padded = (count + 1) * length
        if count and (padded > most_tokens or padded - total > max(run_tokens, _PADDED * total)):
            return count
    return len(lengths)


@dataclass(frozen=True)
class _Bound:
    """A binding, and those of its inputs that lie in the host's memory, which each run overwrites: binding them anew
    takes longer. To a device, binding is what copies them.
    """

    binding: "onnxruntime.IOBinding"
    fed: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Saved:
    """A slot's content: keys and values of its tokens, its source and the source's end, each by the buffer's name."""

    own: Mapping[str, np.ndarray]
    cross: Mapping[str, np.ndarray]
    ends: Mapping[str, np.ndarray]
    source_length: int
    source: int
