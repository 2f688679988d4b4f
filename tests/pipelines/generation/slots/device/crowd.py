"""A slot model of any architecture whose slots lie where ONNX Runtime alone reaches them, and a crowd that asks it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random

from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.engine import SlotEngine
from pipelines.generation.slots.seq2seq import Seq2SeqSessions, Seq2SeqSlots
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW
from tests.pipelines.generation.slots import test_seq2seq_slots, test_slot_engine
from tests.tiny_checkpoints import DECODERS


def slot_model(
    artifact: ModelArtifact, config: SessionConfig | None = None, *, captures: bool = True, on_device: bool = True
) -> CausalSlots | Seq2SeqSlots:
    """`captures`: its steps come in the fixed shapes of CUDA graphs."""
    config = config or SessionConfig()
    if "decoder" not in artifact.manifest.graphs:
        session = InferenceSession(artifact.graph("model"), config, captures=captures)
        return CausalSlots(session, SLOTS, WINDOW, on_device)
    decoder = InferenceSession(artifact.graph("decoder"), config, captures=captures)
    sessions = Seq2SeqSessions(InferenceSession(artifact.graph("encoder"), config), decoder)
    return Seq2SeqSlots(sessions, SLOTS, WINDOW, test_seq2seq_slots.LONGEST, on_device)


def requests_of(architecture: str, count: int, seed: str = "") -> list[DecodeRequest]:
    """Requests of all kinds, drawn with `seed`."""
    module = test_slot_engine if architecture in DECODERS else test_seq2seq_slots
    random = Random(f"{architecture}{seed}")
    return [module.random_request(random) for _ in range(count)]


def answered(engine: SlotEngine, requests: Sequence[DecodeRequest]) -> list[Answer]:
    """Ten callers ask at once."""
    with ThreadPoolExecutor(10) as callers:
        return list(callers.map(engine.generate, requests))
