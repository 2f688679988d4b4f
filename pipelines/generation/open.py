"""Opens the engine that the graphs of an artifact allow."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipelines.errors import ArtifactError, ConfigurationError, first_line
from pipelines.generation.adapters.stack import AdapterStack
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


def open_engine(
    artifact: ModelArtifact, config: SessionConfig, slots: SlotsConfig, stack: AdapterStack | None = None
) -> PlainEngine | SlotEngine:
    """The engine of an artifact, with the adapters of a stack; raises ArtifactError for graphs that are no decoder."""
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
        if stack is not None:
            session = InferenceSession(stack.graph(graph), of_model, folder=graph.parent)
        else:
            session = _session(graph, of_model, captures=captures)
        model = CausalSlots(session, slots.slots, slots.max_tokens, stack=stack)
    return SlotEngine(model, slots.prefill_chunk_tokens, slots)


def open_stack(artifact: ModelArtifact, config: SessionConfig, adapters: Mapping[str, Path]) -> AdapterStack:
    """The adapters in some folders, by name, to be served beside an artifact.

    Raises ConfigurationError where that cannot be, or an adapter cannot be read or does not fit.
    """
    if artifact.manifest.cache != "slots" or "model" not in artifact.manifest.graphs:
        raise ConfigurationError(
            f"adapters is set, but {artifact.path} is no decoder-only model with KV cache slots; "
            "export each adapter merged into its base"
        )
    if config.device != "cpu":
        raise ConfigurationError(f"adapters is set with device {config.device!r}; allowed: cpu")
    stack, source = AdapterStack.open(artifact.graph("model"), adapters), artifact.manifest.source
    for one in stack.adapters:
        if one.base.rstrip("/").rpartition("/")[2] != source.name.rpartition("/")[2]:
            _logger.warning(
                "the adapter %s says that its base is %s; it is served on %s", one.name, one.base, source.name
            )
    return stack


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
