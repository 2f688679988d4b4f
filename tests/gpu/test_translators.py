"""Encoder-decoders with their slots on the device: what the kernels of CUDA compute, against the CPU provider's."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from pipelines.generation.open import open_engine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.device import captured_steps
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from tests.gpu.test_generators import alike
from tests.pipelines.generation.models import SLOTS, WINDOW
from tests.pipelines.generation.slots.device.crowd import answered, requests_of, slot_model
from tests.pipelines.generation.slots.test_seq2seq_slots import LONGEST, START
from tests.tiny_checkpoints import ENCODER_DECODERS

STEPS = 30
SOURCES = {0: 7, 1: 1, 2: 60, 3: LONGEST}  # tokens, by slot

Artifacts = Callable[[str], ModelArtifact]


@pytest.fixture
def artifact_of(exported_for: Callable[..., Path]) -> Artifacts:
    return lambda architecture: ModelArtifact.open(exported_for(architecture, "translation"))


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_logits_are_those_of_the_cpu_provider(
    architecture: str, cuda_graphs: bool, artifact_of: Artifacts, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources of all lengths, encoded together; rows at different steps; a slot that gets another source."""
    monkeypatch.setattr(captured_steps, "_SHORTEST", 16)
    artifact = artifact_of(architecture)
    ours = slot_model(artifact, SessionConfig(device=device), captures=cuda_graphs)  # type: ignore[arg-type]
    reference = slot_model(artifact, captures=False, on_device=False)
    random, precision = Random(1), artifact.manifest.precision
    sources = {slot: tuple(random.randrange(4, 300) for _ in range(n)) for slot, n in SOURCES.items()}
    for model in (ours, reference):
        assert not model.open(sources)
    lengths, tokens = np.zeros(SLOTS, np.int64), np.full(SLOTS, START)
    for step in range(STEPS):
        if step == STEPS // 2:
            for model in (ours, reference):
                model.copy([0], [1], int(lengths[0]))
                assert not model.open({2: (5, 6, 7)})
            lengths[1], tokens[1] = lengths[0], tokens[0]
            lengths[2], tokens[2] = 0, START
        rows = (4, 2, 1)[step % 3]  # sequences come and go
        at = np.arange(rows)
        read = [one.read(0, tokens[:rows, None], lengths[:rows], at).rows(range(rows)) for one in (ours, reference)]
        alike(read, precision)
        lengths[:rows] += 1
        tokens[:rows] = read[1].argmax(axis=1)


def test_a_served_engine_captures_its_steps_and_says_nothing(
    device: str, artifact_of: Artifacts, caplog: pytest.LogCaptureFixture
) -> None:
    config = SessionConfig(device=device)  # type: ignore[arg-type]
    for architecture in ("bart", "t5"):
        engine = open_engine(artifact_of(architecture), config, SlotsConfig(SLOTS, WINDOW))
        assert isinstance(engine, SlotEngine)
        answered(engine, requests_of(architecture, 12))
        captured = engine._model._captured  # type: ignore[attr-defined]
        assert (captured is not None and captured.works) == (device == "cuda")
    assert not caplog.records
