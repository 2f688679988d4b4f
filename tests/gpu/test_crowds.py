"""Crowds of requests whose sequences are decoded together on the device: each ends as it must."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import task_of
from tests.pipelines.generation.slots.device.crowd import answered, requests_of, slot_model
from tests.pipelines.generation.slots.test_slot_engine import idle
from tests.tiny_checkpoints import DECODERS, ENCODER_DECODERS


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODER_DECODERS])
def test_requests_of_all_kinds_that_come_and_go_end_as_they_must(
    architecture: str, device: str, exported_for: Callable[..., Path]
) -> None:
    """Greedy, samples and beams, with constraints and logprobs where the model has no source, paused and resumed."""
    artifact = ModelArtifact.open(exported_for(architecture, task_of(architecture)))
    model = slot_model(artifact, SessionConfig(device=device))  # type: ignore[arg-type]
    engine = SlotEngine(model, prefill_chunk_tokens=24, turns=SlotsConfig(turn_tokens=4))
    requests = requests_of(architecture, 40)
    for request, answer in zip(requests, answered(engine, requests), strict=True):
        for generation in answer.generations:
            tokens = len(request.prompt) + len(generation.steps)
            assert generation.finish_reason in ("eos_token", "stop_sequence", "length")
            assert tokens <= request.max_length
            if generation.finish_reason == "length":
                assert tokens == request.max_length
            if request.logprobs and request.config.num_beams == 1:
                assert all(step.logprob is not None and step.logprob <= 1e-3 for step in generation.steps)
    assert idle(engine)
