"""The memory of slots as computed from a config is that of the buffers that the engine makes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.host_cache import HostCache
from pipelines.generation.slots.memory import slot_bytes
from pipelines.generation.slots.seq2seq import Seq2SeqSessions, Seq2SeqSlots
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW, changes_of, task_of
from tests.tiny_checkpoints import DECODERS, ENCODER_DECODERS


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODER_DECODERS])
def test_it_is_what_the_buffers_take(architecture: str, exported: Callable[..., Path]) -> None:
    artifact = ModelArtifact.open(exported(architecture, task_of(architecture), **changes_of(architecture)))
    assert slot_bytes(artifact, WINDOW) == buffers_bytes(artifact) / SLOTS


@pytest.mark.parametrize(
    ("architecture", "precision"), [("llama", "fp16"), ("llama", "int4"), ("bart", "fp16"), ("t5", "fp16")]
)
def test_slots_on_a_gpu_are_halves(architecture: str, precision: str, exported: Callable[..., Path]) -> None:
    artifact = ModelArtifact.open(exported(architecture, task_of(architecture), precision, device="cuda"))
    assert slot_bytes(artifact, WINDOW) == buffers_bytes(artifact) / SLOTS


def buffers_bytes(artifact: ModelArtifact) -> int:
    if "decoder" not in artifact.manifest.graphs:
        model = CausalSlots(InferenceSession(artifact.graph("model"), SessionConfig()), SLOTS, WINDOW)
        assert isinstance(model._cache, HostCache)
        return sum(array.nbytes for array in model._cache._arrays.values())
    longest = artifact.manifest.tokenizer.readable  # of a source, as the engine is opened
    both = Seq2SeqSlots(Seq2SeqSessions.of(artifact, SessionConfig()), SLOTS, WINDOW, longest)
    assert isinstance(both._own, HostCache)
    assert isinstance(both._cross, HostCache)
    return sum(array.nbytes for cache in (both._own, both._cross) for array in cache._arrays.values())


def test_a_model_without_slots_has_none(exported: Callable[..., Path]) -> None:
    artifact = ModelArtifact.open(exported("bert", "text-classification"))
    assert slot_bytes(artifact, WINDOW) is None
