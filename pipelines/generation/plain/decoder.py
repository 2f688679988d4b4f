"""Decoder: the graphs of an artifact behind two calls: `prefill` reads a prompt, `step` one token per row.

decoder-only     model.onnx: prompt and answer in one sequence; without a shared buffer, a slot graph does the same
encoder-decoder  encoder_model.onnx once per source, decoder_model_merged.onnx per token; its `use_cache_branch`
                 chooses between computing the source's keys and values and using those of the cache. Slot graphs
                 (slots.seq2seq) compute them in the encoder
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from pipelines.generation.decoding.request import Cancelled, not_cancelled
from pipelines.generation.plain.kv_cache import CacheLayout, KvCache, empty_cache
from pipelines.generation.slots.seq2seq import Seq2SeqSessions
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig, parts

PREFILL_CHUNK_TOKENS = 512
"""Prefill chunk: the graph returns logits for every token that it reads, which for a long prompt and a large vocabulary
would take gigabytes."""


_PLAIN_INPUTS = ("input_ids", "attention_mask", "position_ids")
_SLOT_INPUTS = ("seqlens_k", "total_sequence_length", "logits_at")


class Decoder(Protocol):
    """Logits are float32; a cache belongs to one request."""

    def prefill(
        self,
        prompt: Sequence[int],
        source: Sequence[int],
        cancelled: Cancelled = not_cancelled,
        on_logits: Callable[[int, np.ndarray], None] | None = None,
    ) -> tuple[np.ndarray, KvCache]:
        """Read a prompt of at least one token: the logits after the last one, (1, vocab), and a cache of one row.

        `on_logits(start, logits)` receives the logits of each chunk, (tokens, vocab), whose first token is `start`.
        """

    def step(self, tokens: np.ndarray, cache: KvCache) -> tuple[np.ndarray, KvCache]:
        """Read one token per row, (rows,) int64: logits, (rows, vocab), and a cache that holds these tokens too."""


def open_decoder(artifact: ModelArtifact, config: SessionConfig) -> Decoder:
    """The decoder of an artifact; raises ArtifactError for graphs that are not decoders as export makes them."""
    if "decoder" in artifact.manifest.graphs:
        if artifact.manifest.cache == "slots":
            return Seq2SeqDecoder(Seq2SeqSessions.of(artifact, config))
        return EncoderDecoder(artifact, config)
    return CausalDecoder(InferenceSession(artifact.graph("model"), config))


class CausalDecoder:
    """A decoder-only model in one graph."""

    def __init__(self, session: InferenceSession, prefill_chunk_tokens: int = PREFILL_CHUNK_TOKENS) -> None:
        self._session = session
        self._layout = CacheLayout.of(session, _PLAIN_INPUTS + _SLOT_INPUTS)
        self._chunk_tokens = prefill_chunk_tokens

    def prefill(
        self,
        prompt: Sequence[int],
        source: Sequence[int] = (),
        cancelled: Cancelled = not_cancelled,
        on_logits: Callable[[int, np.ndarray], None] | None = None,
    ) -> tuple[np.ndarray, KvCache]:
        cache = empty_cache(self._layout, rows=1)
        ids = np.asarray([prompt], np.int64)
        for start in range(0, len(prompt), self._chunk_tokens):
            logits, cache = self._run(ids[:, start : start + self._chunk_tokens], cache)
            if on_logits is not None:
                on_logits(start, logits[0])
            if cancelled():
                break
        return logits[:, -1], cache

    def step(self, tokens: np.ndarray, cache: KvCache) -> tuple[np.ndarray, KvCache]:
        logits, cache = self._run(tokens[:, None], cache)
        return logits[:, -1], cache

    def _run(self, ids: np.ndarray, cache: KvCache) -> tuple[np.ndarray, KvCache]:
        """Read `ids`, (rows, tokens) int64: their logits, (rows, tokens, vocab), and the cache with them."""
        rows, tokens = ids.shape
        total = cache.n_tokens + tokens
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, total), np.int64),
            "position_ids": np.tile(np.arange(cache.n_tokens, total), (rows, 1)),
            "seqlens_k": np.full(rows, total - 1, np.int32),
            "total_sequence_length": np.asarray(total, np.int32),
            "logits_at": np.arange(rows * tokens),
            **cache.growing,
        }
        outputs = self._session.run({name: feeds[name] for name in self._session.input_names})
        logits = outputs["logits"].reshape(rows, tokens, -1).astype(np.float32, copy=False)
        return logits, cache.grown(outputs, tokens)


class EncoderDecoder:
    """An encoder and Optimum's merged decoder."""

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        graphs = [artifact.graph(role) for role in ("encoder", "decoder")]
        self._encoder, self._decoder = map(InferenceSession, graphs, parts(config, graphs))
        fed = ("input_ids", "encoder_hidden_states", "encoder_attention_mask", "use_cache_branch")
        self._layout = CacheLayout.of(self._decoder, fed)

    def prefill(
        self,
        prompt: Sequence[int],
        source: Sequence[int],
        cancelled: Cancelled = not_cancelled,
        on_logits: Callable[[int, np.ndarray], None] | None = None,
    ) -> tuple[np.ndarray, KvCache]:
        mask = np.ones((1, len(source)), np.int64)
        encoded = self._encoder.run({"input_ids": np.asarray([source], np.int64), "attention_mask": mask})
        cache = empty_cache(
            self._layout,
            rows=1,
            fixed={
                "encoder_hidden_states": encoded["last_hidden_state"],
                "encoder_attention_mask": mask,
            },
        )
        logits, cache = self._run(np.asarray([prompt], np.int64), cache)
        if on_logits is not None:
            on_logits(0, logits[0])
        return logits[:, -1], cache

    def step(self, tokens: np.ndarray, cache: KvCache) -> tuple[np.ndarray, KvCache]:
        logits, cache = self._run(tokens[:, None], cache)
        return logits[:, -1], cache

    def _run(self, ids: np.ndarray, cache: KvCache) -> tuple[np.ndarray, KvCache]:
        """Read `ids`, (rows, tokens) int64: their logits, (rows, tokens, vocab), and the cache with them."""
        feeds = {
            "input_ids": ids,
            "use_cache_branch": np.asarray([cache.n_tokens > 0]),
            **cache.growing,
            **cache.fixed,
        }
        outputs = self._decoder.run({name: feeds[name] for name in self._decoder.input_names})
        return outputs["logits"].astype(np.float32, copy=False), cache.grown(outputs, ids.shape[1])


class Seq2SeqDecoder:
    """The slot graphs of an encoder-decoder, without preallocated buffers: each step copies the cache."""

    def __init__(self, sessions: Seq2SeqSessions) -> None:
        self._sessions = sessions
        self._layout = CacheLayout.of(sessions.decoder, sessions.fed)

    def prefill(
        self,
        prompt: Sequence[int],
        source: Sequence[int],
        cancelled: Cancelled = not_cancelled,
        on_logits: Callable[[int, np.ndarray], None] | None = None,
    ) -> tuple[np.ndarray, KvCache]:
        encoded = self._sessions.encode([source])  # (parts, 1, heads, tokens, head_dim)
        fixed = dict(zip(self._sessions.cross, encoded, strict=True))
        fixed |= zip(self._sessions.ends, encoded[:, :, :, -1].reshape(len(encoded), 1, 1, -1), strict=True)
        fixed["source_seqlens_k"] = np.asarray([len(source) - 1], np.int32)
        cache = empty_cache(self._layout, rows=1, fixed=fixed)
        for start, token in enumerate(prompt):
            logits, cache = self.step(np.asarray([token], np.int64), cache)
            if on_logits is not None:
                on_logits(start, logits)
            if cancelled():
                break
        return logits, cache

    def step(self, tokens: np.ndarray, cache: KvCache) -> tuple[np.ndarray, KvCache]:
        feeds = {
            "input_ids": tokens[:, None],
            "seqlens_k": np.full(len(tokens), cache.n_tokens, np.int32),
            "total_sequence_length": np.asarray(cache.n_tokens + 1, np.int32),
            "source_total_sequence_length": np.asarray(cache.fixed["source_seqlens_k"].max() + 1, np.int32),
            "key_positions": np.arange(cache.n_tokens + 1),
            **cache.growing,
            **cache.fixed,
        }
        outputs = self._sessions.decoder.run({name: feeds[name] for name in self._sessions.decoder.input_names})
        return outputs["logits"], cache.grown(outputs, 1)
