"""Seq2SeqSlots: the slot graphs of an encoder-decoder (export.graphs.seq2seq_slot_graph) over preallocated buffers.

A slot holds up to `max_tokens` decoder tokens, as a decoder-only model's does, and the keys and values of one source,
which `open` computes. A step reads a token of neighbouring slots, each at its own length and with its own source; its
cost depends on these lengths, not on the size of the buffers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import ArtifactError, InputTooLongError
from pipelines.generation.decoding.step_logits import HostLogits
from pipelines.generation.slots.lazy_zeros import lazy_zeros
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig


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
        self.fed = tuple(name for name in self.decoder.input_names if name not in self.caches)
        parts = len(self.caches) // 2  # keys and values of every layer
        self.own, self.cross = self.caches[:parts], self.caches[parts:]
        self.ends = tuple(name for name in self.fed if name.startswith("source_end."))

    @classmethod
    def of(cls, artifact: ModelArtifact, config: SessionConfig) -> Self:
        return cls(*(InferenceSession(artifact.graph(role), config) for role in ("encoder", "decoder")))

    def encode(self, sources: Sequence[Sequence[int]]) -> np.ndarray:
        """The keys and values of some sources, (2 x layers, sources, heads, longest, head_dim) float32."""
        ids = np.zeros((len(sources), max(map(len, sources))), np.int64)
        mask = np.zeros_like(ids)
        for row, source in enumerate(sources):
            ids[row, : len(source)], mask[row, : len(source)] = source, 1
        return self.encoder.run({"input_ids": ids, "attention_mask": mask})["cross_key_values"]


class Seq2SeqSlots:
    """Sources have at most `max_source_tokens`. Not thread-safe: one thread may use it at a time."""

    def __init__(self, sessions: Seq2SeqSessions, slots: int, max_tokens: int, max_source_tokens: int) -> None:
        self.slots, self.max_tokens, self.vocab = slots, max_tokens, sessions.vocab
        self.reads_ahead = False  # a read of several tokens is one run for each of them
        self.run_tokens = _RUN_TOKENS
        self._sessions = sessions
        parts, heads, width = len(sessions.own), sessions.heads, sessions.width
        # Memory is resident from the first write on: lengths that no text reaches cost nothing.
        self._own = lazy_zeros((parts, slots, heads, max_tokens, width), np.dtype(np.float32))
        self._cross = lazy_zeros((parts, slots, heads, max_source_tokens, width), np.dtype(np.float32))
        self._ends = np.zeros((parts, slots, 1, heads * width), np.float32)
        self._source_lengths = np.ones(slots, np.int64)
        self._sources = np.zeros(slots, np.int64)  # a number for the source that each slot holds
        self._opened = 0
        self._bound: dict[tuple[int, int], _Bound] = {}

    def open(self, sources: Mapping[int, Sequence[int]]) -> Mapping[int, Exception]:
        """As SlotModel.open. Sources of similar lengths form a batch, which costs its longest row times its rows."""
        longest = self._cross.shape[3]
        failed: dict[int, Exception] = {
            slot: InputTooLongError(f"has {len(source)} tokens; allowed: at most {longest}", ("inputs",))
            for slot, source in sources.items()
            if len(source) > longest
        }
        opened = sorted((one for one in sources.items() if one[0] not in failed), key=lambda one: len(one[1]))
        while opened:
            count = _worth_a_batch([len(source) for _, source in opened])
            failed |= self._encode(opened[:count])
            opened = opened[count:]
        return failed

    def step_rows(self, first: int, end: int) -> tuple[int, int]:
        """As SlotModel.step_rows."""
        return first, end

    def read(
        self, first: int, ids: np.ndarray, lengths: np.ndarray, logits_at: np.ndarray, counts: np.ndarray | None = None
    ) -> HostLogits:
        """As SlotModel.read, token by token; padding is read, too, behind the content of its row."""
        rows, tokens = ids.shape
        bound = self._binding(first, rows)
        bound.source_seqlens_k[:] = self._source_lengths[first : first + rows] - 1
        bound.source_total[...] = bound.source_seqlens_k.max() + 1
        logits = np.empty((tokens, rows, self._sessions.vocab), np.float32)
        for token in range(tokens):
            bound.ids[:, 0] = ids[:, token]
            # A full slot in between reads a token too: it must not write beyond its end.
            np.minimum(lengths + token, self.max_tokens - 1, out=bound.seqlens_k, casting="same_kind")
            bound.total[...] = bound.seqlens_k.max() + 1
            bound.binding.bind_output("logits", "cpu", 0, np.float32, logits.shape[1:], logits[token].ctypes.data)
            self._sessions.decoder.run_bound(bound.binding)
        if tokens == 1:
            return HostLogits(HostLogits(logits[0]).rows(logits_at.tolist()))
        return HostLogits(logits[logits_at % tokens, logits_at // tokens])

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int, start: int = 0) -> None:
        """As SlotModel.copy; a source that the target holds already is not copied."""
        origins, goals = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
        self._own[:, goals, :, start:tokens] = self._own[:, origins, :, start:tokens]
        other = self._sources[origins] != self._sources[goals]
        if start == 0 and other.any():
            origins, goals = origins[other], goals[other]
            longest = int(self._source_lengths[origins].max())
            self._cross[:, goals, :, :longest] = self._cross[:, origins, :, :longest]
            self._ends[:, goals] = self._ends[:, origins]
            self._source_lengths[goals] = self._source_lengths[origins]
            self._sources[goals] = self._sources[origins]

    def save(self, slot: int, tokens: int) -> "_Saved":
        """As SlotModel.save."""
        longest = int(self._source_lengths[slot])
        return _Saved(
            self._own[:, slot, :, :tokens].copy(),
            self._cross[:, slot, :, :longest].copy(),
            self._ends[:, slot].copy(),
            longest,
            int(self._sources[slot]),
        )

    def restore(self, slot: int, saved: "_Saved") -> None:
        """As SlotModel.restore."""
        self._own[:, slot, :, : saved.own.shape[2]] = saved.own
        self._cross[:, slot, :, : saved.source_length] = saved.cross
        self._ends[:, slot] = saved.ends
        self._source_lengths[slot], self._sources[slot] = saved.source_length, saved.source

    def _encode(self, batch: Sequence[tuple[int, Sequence[int]]]) -> dict[int, Exception]:
        """Encode one source into each slot of a batch; returns the errors of slots that failed."""
        try:
            encoded = self._sessions.encode([source for _, source in batch])  # (parts, rows, heads, tokens, head_dim)
        except Exception as error:
            if len(batch) == 1:
                return {batch[0][0]: error}
            # Encode one by one, to find the source that fails.
            return {slot: failure for one in batch for slot, failure in self._encode([one]).items()}
        for row, (slot, source) in enumerate(batch):
            tokens = len(source)
            self._cross[:, slot, :, :tokens] = encoded[:, row, :, :tokens]
            self._ends[:, slot, 0] = encoded[:, row, :, tokens - 1].reshape(len(encoded), -1)
            self._source_lengths[slot] = tokens
            self._opened += 1
            self._sources[slot] = self._opened
        return {}

    def _binding(self, first: int, rows: int) -> "_Bound":
        """The binding of neighbouring slots without logits, made once: past and present are the same memory."""
        if (first, rows) not in self._bound:
            binding = self._sessions.decoder.binding()
            bound = _Bound(
                binding,
                np.zeros((rows, 1), np.int64),
                np.zeros(rows, np.int32),
                np.zeros((), np.int32),
                np.zeros(rows, np.int32),
                np.zeros((), np.int32),
            )
            views = dict(zip(_FED, bound.arrays, strict=True))
            for names, buffers in zip(
                (self._sessions.own, self._sessions.cross, self._sessions.ends),
                (self._own, self._cross, self._ends),
                strict=True,
            ):
                views |= {name: buffer[first : first + rows] for name, buffer in zip(names, buffers, strict=True)}
            for name, view in views.items():
                where = ("cpu", 0, view.dtype, view.shape, view.ctypes.data)
                binding.bind_input(name, *where)
                if name in self._sessions.caches:
                    binding.bind_output(name.replace("past_key_values", "present", 1), *where)
            self._bound[first, rows] = bound
        return self._bound[first, rows]


_PADDED = 0.25  # padding that a batch may have, relative to its real tokens,
_RUN_TOKENS = 16  # or in tokens: a run of its own costs as much
_BATCH_TOKENS = 1024  # larger batches save nothing
_FED = ("input_ids", "seqlens_k", "total_sequence_length", "source_seqlens_k", "source_total_sequence_length")


def _worth_a_batch(lengths: Sequence[int]) -> int:
    """How many sources of these lengths, ascending, one batch encodes faster than several runs."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        padded = (count + 1) * length
        if count and (padded > _BATCH_TOKENS or padded - total > max(_RUN_TOKENS, _PADDED * total)):
            return count
    return len(lengths)


@dataclass(frozen=True)
class _Bound:
    """A binding, and its small inputs, which each run overwrites."""

    binding: "onnxruntime.IOBinding"
    ids: np.ndarray
    seqlens_k: np.ndarray
    total: np.ndarray
    source_seqlens_k: np.ndarray
    source_total: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """In the order of _FED."""
        return (self.ids, self.seqlens_k, self.total, self.source_seqlens_k, self.source_total)


@dataclass(frozen=True)
class _Saved:
    """A slot's content: `own`, `cross` (parts, heads, tokens, head_dim); `ends` (parts, 1, heads x head_dim)."""

    own: np.ndarray
    cross: np.ndarray
    ends: np.ndarray
    source_length: int
    source: int
