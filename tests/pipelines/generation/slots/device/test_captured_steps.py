"""Steps that CUDA captures: what happens where it cannot. Here `run_bound` says so in its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import NOT_CAPTURED, InferenceSession
from tests.pipelines.generation.models import changes_of, task_of
from tests.pipelines.generation.slots.device.crowd import requests_of, slot_model
from tests.pipelines.generation.slots.test_slot_engine import Engines, assert_same


@pytest.mark.parametrize("architecture", ["llama", "marian"])
def test_steps_that_cannot_be_captured_run_without_and_say_so_once(
    architecture: str,
    exported: Callable[..., Path],
    engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = InferenceSession.run_bound

    def refusing(self: InferenceSession, binding: Any, graph_id: int = NOT_CAPTURED) -> None:
        if graph_id != NOT_CAPTURED:
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing\n at gpu")
        run(self, binding, graph_id)

    monkeypatch.setattr(InferenceSession, "run_bound", refusing)
    artifact = ModelArtifact.open(exported(architecture, task_of(architecture), **changes_of(architecture)))
    slots = SlotEngine(slot_model(artifact), prefill_chunk_tokens=64)
    requests = requests_of(architecture, 10)
    for request, answer in zip(requests, slots.generate_all(requests), strict=True):
        assert_same(answer, engine(architecture).generate(request))
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "decodes without CUDA graphs from now on: CUDA failure 900: operation not permitted when stream is capturing"
    )
