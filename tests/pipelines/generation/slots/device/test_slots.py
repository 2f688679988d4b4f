"""Slots and logits where ONNX Runtime alone reaches them, as on a GPU; here it is the CPU's memory.

Everything but the kernels is what runs on CUDA: the copies, the best tokens, the shapes of captured steps.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.device.logits import DeviceLogits
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import NOT_CAPTURED, InferenceSession
from tests.pipelines.generation.models import WINDOW
from tests.pipelines.generation.slots.device.crowd import answered, requests_of, slot_model
from tests.pipelines.generation.slots.recording import RecordingDecoder
from tests.pipelines.generation.slots.test_slot_engine import assert_same, idle
from tests.tiny_checkpoints import DECODERS

Made = Callable[..., CausalSlots]


@pytest.fixture
def on_device(exported: Callable[..., Path]) -> Made:
    """`on_device(architecture, cuda_graphs)`."""

    def make(architecture: str, cuda_graphs: bool = True) -> CausalSlots:
        artifact = ModelArtifact.open(exported(architecture, "text-generation"))
        model = slot_model(artifact, captures=cuda_graphs)
        assert isinstance(model, CausalSlots)
        return model

    return make


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("architecture", DECODERS)
def test_answers_are_those_of_slots_in_host_memory(
    architecture: str, cuda_graphs: bool, on_device: Made, engine: Callable[[str], PlainEngine]
) -> None:
    """Greedy, samples, beams, constraints and logprobs; sequences are paused, moved and share prefixes."""
    turns = SlotsConfig(turn_tokens=4)
    slots = SlotEngine(on_device(architecture, cuda_graphs), prefill_chunk_tokens=12, turns=turns)
    requests = requests_of(architecture, 40, f" {cuda_graphs}")
    for request, answer in zip(requests, answered(slots, requests), strict=True):
        assert_same(answer, engine(architecture).generate(request))
    assert idle(slots)


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_graphs_for_cuda_are_answered_alike_wherever_their_slots_lie(
    precision: str, exported: Callable[..., Path]
) -> None:
    """The CPU provider has fp16 attention over slots: pauses and copies move halves."""
    artifact = ModelArtifact.open(exported("llama", "text-generation", precision, device="cuda"))
    requests = requests_of("llama", 20, precision)
    found = []
    for on_device in (False, True):
        model = slot_model(artifact, on_device=on_device)
        slots = SlotEngine(model, prefill_chunk_tokens=12, turns=SlotsConfig(turn_tokens=4))
        found.append(answered(slots, requests))
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


def test_greedy_and_sampled_tokens_copy_no_row_of_logits(on_device: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    rows = DeviceLogits.rows

    def counted(self: DeviceLogits, wanted: Sequence[int]) -> np.ndarray:
        copied.append(len(wanted))
        return rows(self, wanted)

    monkeypatch.setattr(DeviceLogits, "rows", counted)
    engine = SlotEngine(on_device("llama"), prefill_chunk_tokens=64)
    options: tuple[dict[str, Any], ...] = ({}, {"do_sample": True, "top_k": 20}, {"repetition_penalty": 1.2})
    requests = [
        DecodeRequest((5 + n, 6, 7), GenerationConfig(max_new_tokens=20, **one).for_prompt(3, WINDOW))
        for n, one in enumerate(options)
    ]
    engine.generate_all(requests)
    assert sum(copied) <= 2  # ties, at most
    sampled = GenerationConfig(max_new_tokens=20, do_sample=True, top_k=0).for_prompt(3, WINDOW)
    request = DecodeRequest((5, 6, 7), sampled)
    engine.generate(request)
    assert sum(copied) <= 4  # shares at the end of a token
    engine.generate(replace(request, logprobs=True))
    assert sum(copied) >= 20


def test_captured_steps_come_in_few_shapes(on_device: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that begin and end change the rows of a step; each shape has a number of its own, for good."""
    seen: dict[int, set[tuple[int, str]]] = {}
    run = InferenceSession.run_bound
    model = on_device("llama")

    def noted(self: InferenceSession, binding: Any, graph_id: int = NOT_CAPTURED) -> None:
        if self is model._session:
            thread = "" if graph_id == NOT_CAPTURED else threading.current_thread().name
            seen.setdefault(graph_id, set()).add((id(binding), thread))
        run(self, binding, graph_id)

    monkeypatch.setattr(InferenceSession, "run_bound", noted)
    recorded = RecordingDecoder(model)
    engine = SlotEngine(recorded, prefill_chunk_tokens=64)
    for turn in range(3):  # the decode thread ends in between; a CUDA graph belongs to the thread that captured it
        answered(engine, requests_of("llama", 10, str(turn)))
        assert idle(engine)
    steps = {rows for rows, tokens in recorded.reads if tokens == 1}
    assert steps <= {1, 2, 4}
    assert len(seen.pop(NOT_CAPTURED)) > 0  # prompts
    assert len(seen) == len(steps)
    assert all(len(bindings) == 1 for bindings in seen.values())
    assert len({thread for bindings in seen.values() for _, thread in bindings}) == 1


def test_a_captured_step_changes_no_slot_but_those_that_read(on_device: Made) -> None:
    """It covers the first slots, whoever is in them: what they hold stays as it is."""
    model = on_device("llama")
    ids = np.asarray([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    model.read(0, ids, np.zeros(3, np.int64), np.asarray([2, 5, 8]))
    held = [model.save(slot, 3) for slot in range(3)]
    first, end = model.step_rows(1, 3)
    assert (first, end) == (0, 4)
    lengths = np.asarray([3, 3, 3, 0])
    model.read(first, np.asarray([[0], [20], [21], [0]]), lengths, np.asarray([1, 2]))
    for slot, before in enumerate(held):
        for name, values in model.save(slot, 3).items():
            np.testing.assert_array_equal(values, before[name])
