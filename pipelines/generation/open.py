"""Opens the engine that the graphs of an artifact allow."""

import logging
from dataclasses import replace
from pathlib import Path

from pipelines.errors import ArtifactError, first_line
from pipelines.generation.plain.decoder import open_decoder
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.generation.slots.memory import slot_bytes
from pipelines.generation.slots.seq2seq import Seq2SeqSessions, Seq2SeqSlots
from pipelines.generation.slots.slot_model import SlotModel
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig, parts

_logger = logging.getLogger(__name__)


def open_engine(artifact: ModelArtifact, config: SessionConfig, slots: SlotsConfig) -> PlainEngine | SlotEngine:
    """The engine of an artifact; raises ArtifactError for graphs that are no decoder."""
    if artifact.manifest.cache != "slots":
        return PlainEngine(open_decoder(artifact, config), config.concurrency)
    captures = slots.cuda_graphs and config.device == "cuda"
    cache_bytes = slots.slots * (slot_bytes(artifact, slots.max_tokens) or 0)
    if "decoder" in artifact.manifest.graphs:
        graphs = [artifact.graph(role) for role in ("encoder", "decoder")]
        of_encoder, of_decoder = parts(config, graphs, cache_bytes)
        encoder = InferenceSession(graphs[0], of_encoder)
        sessions = Seq2SeqSessions(encoder, _session(graphs[1], of_decoder, captures=captures))
        longest = artifact.manifest.tokenizer.readable
        model: SlotModel = Seq2SeqSlots(sessions, slots.slots, slots.max_tokens, longest)
    else:
        graph = artifact.graph("model")
        (of_model,) = parts(replace(config, spins=True), [graph], cache_bytes)
        model = CausalSlots(_session(graph, of_model, captures=captures), slots.slots, slots.max_tokens)
    return SlotEngine(model, slots.prefill_chunk_tokens, slots)


def _session(graph: Path, config: SessionConfig, *, captures: bool) -> InferenceSession:
    """The session of a slot graph; one that cannot be captured as a CUDA graph runs without."""
    try:
        return InferenceSession(graph, config, captures=captures)
    except ArtifactError as error:
        if not captures:
            raise
        session = InferenceSession(graph, config)
        _logger.warning("%s decodes without CUDA graphs: %s", graph, first_line(error))
        return session
