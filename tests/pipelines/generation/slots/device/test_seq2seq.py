"""Encoder-decoders with slots where ONNX Runtime alone reaches them, as on a GPU; here it is the CPU's memory.

Their parts are in test_seq2seq_slots, whose tests run on both.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.device import captured_steps
from pipelines.generation.slots.device.logits import DeviceLogits
from pipelines.generation.slots.engine import SlotEngine
from pipelines.generation.slots.seq2seq import Seq2SeqSlots
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import NOT_CAPTURED, InferenceSession
from tests.pipelines.generation.models import WINDOW, changes_of
from tests.pipelines.generation.slots.device.crowd import answered, requests_of, slot_model
from tests.pipelines.generation.slots.recording import RecordingDecoder
from tests.pipelines.generation.slots.test_seq2seq_slots import START
from tests.pipelines.generation.slots.test_slot_engine import Engines, assert_same, idle
from tests.tiny_checkpoints import ENCODER_DECODERS

Exported = Callable[..., Path]


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_answers_are_those_of_the_plain_engine(
    architecture: str, captures: bool, exported: Exported, engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, samples and beams of sources of all lengths; sequences are paused, moved and resumed."""
    monkeypatch.setattr(captured_steps, "_SHORTEST", 8)  # so that answers and sources outgrow several shapes
    artifact = ModelArtifact.open(exported(architecture, "translation", **changes_of(architecture)))
    model = slot_model(artifact, captures=captures)
    slots = SlotEngine(model, prefill_chunk_tokens=24, turns=SlotsConfig(turn_tokens=4))
    requests = requests_of(architecture, 30, f" {captures}")
    for request, answer in zip(requests, answered(slots, requests), strict=True):
        assert_same(answer, engine(architecture).generate(request))
    assert idle(slots)
    assert captures == (model._captured is not None and model._captured.works)


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_graphs_for_cuda_have_slots_and_are_answered_alike_wherever_these_lie(
    architecture: str, exported: Exported
) -> None:
    """The CPU provider has fp16 attention over slots: pauses, copies and encoded sources move halves."""
    folder = exported(architecture, "translation", "fp16", device="cuda", **changes_of(architecture))
    artifact = ModelArtifact.open(folder)
    assert artifact.manifest.cache == "slots"
    requests = requests_of(architecture, 20)
    found = []
    for on_device in (False, True):
        model = slot_model(artifact, on_device=on_device)
        assert isinstance(model, Seq2SeqSlots)
        assert {one.name for one in model._own.dtypes.values()} == {"float16"}
        found.append(answered(SlotEngine(model, 24, SlotsConfig(turn_tokens=4)), requests))
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_lengths_on_the_host_reach_nothing_but_attention(architecture: str, exported: Exported) -> None:
    """Every other operator reads device memory: a copy in each step costs more than the step, and forbids capturing."""
    folder = exported(architecture, "translation", "fp16", device="cuda", **changes_of(architecture))
    decoder = onnx.load(ModelArtifact.open(folder).graph("decoder"))
    for total in ("total_sequence_length", "source_total_sequence_length"):
        readers = [node.op_type for node in decoder.graph.node if total in node.input]
        assert set(readers) == {"GroupQueryAttention"}
    made = {node.op_type for node in decoder.graph.node}
    assert not made & {"Range", "Shape", "ConstantOfShape", "NonZero", "Loop", "If"}, "what is shaped by the host"


def test_steps_come_in_few_shapes_and_greedy_tokens_copy_no_logits(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = ModelArtifact.open(exported("t5", "translation", **changes_of("t5")))
    model, graphs, copied = slot_model(artifact), set[int](), list[int]()
    assert isinstance(model, Seq2SeqSlots)
    run, rows = InferenceSession.run_bound, DeviceLogits.rows

    def noted(self: InferenceSession, binding: Any, graph_id: int = NOT_CAPTURED) -> None:
        if self is model._decoder:
            graphs.add(graph_id)
        run(self, binding, graph_id)

    def counted(self: DeviceLogits, wanted: Any) -> np.ndarray:
        copied.append(len(wanted))
        return rows(self, wanted)

    monkeypatch.setattr(InferenceSession, "run_bound", noted)
    monkeypatch.setattr(DeviceLogits, "rows", counted)
    recorded = RecordingDecoder(model)
    engine = SlotEngine(recorded, prefill_chunk_tokens=64)
    config = GenerationConfig(max_new_tokens=20).for_prompt(1, WINDOW)
    for n_requests in (1, 3, 9):
        requests = [DecodeRequest((START,), config, source=(5 + n, 9)) for n in range(n_requests)]
        answered(engine, requests)
    assert {rows for rows, tokens in recorded.reads if tokens == 1} <= {1, 2, 4}
    assert NOT_CAPTURED not in graphs
    assert len(graphs) <= 3
    assert sum(copied) <= 4  # ties, at most
