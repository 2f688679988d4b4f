"""Prompts that come together are read together, and are answered as if each had come alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.engine import SlotEngine
from pipelines.generation.slots.prompt_batch import batch_around
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW
from tests.pipelines.generation.slots.recording import RecordingDecoder, logits_of
from tests.tiny_checkpoints import DECODERS

Opened = Callable[..., tuple[SlotEngine, RecordingDecoder]]


@pytest.fixture
def opened(exported: Callable[..., Path]) -> Opened:
    def make(chunk_tokens: int = 64) -> tuple[SlotEngine, RecordingDecoder]:
        artifact = ModelArtifact.open(exported("llama", "text-generation"))
        model = RecordingDecoder(CausalSlots(InferenceSession(artifact.graph("model"), SessionConfig()), SLOTS, WINDOW))
        return SlotEngine(model, chunk_tokens), model

    return make


def asked(first: int, tokens: int, **options: bool) -> DecodeRequest:
    config = GenerationConfig(max_new_tokens=6).for_prompt(tokens, WINDOW)
    return DecodeRequest(tuple(range(first, first + tokens)), config, **options)  # type: ignore[arg-type]


def prompt_reads(model: RecordingDecoder) -> list[tuple[int, int]]:
    return [(rows, tokens) for rows, tokens in model.reads if tokens > 1]


def test_prompts_of_several_requests_take_one_read(opened: Opened) -> None:
    engine, model = opened()
    requests = [asked(20 * n + 5, tokens) for n, tokens in enumerate((9, 12, 7, 10))]
    together = engine.generate_all(requests)
    assert prompt_reads(model) == [(4, 12)]
    alone, _ = opened()
    assert together == [alone.generate(request) for request in requests]


def test_logprobs_of_a_prompt_are_its_own_in_a_batch(opened: Opened) -> None:
    engine, model = opened()
    requests = [asked(5, 9, logprobs=True, prompt_logprobs=True), asked(30, 12), asked(60, 3, logprobs=True)]
    together = engine.generate_all(requests)
    assert prompt_reads(model) == [(3, 12)]
    alone, _ = opened()
    assert together == [alone.generate(request) for request in requests]
    assert len(together[0].prompt_logprobs) == 8


def test_a_prompt_that_a_slot_begins_with_and_one_longer_than_a_chunk_are_read_alone(opened: Opened) -> None:
    engine, model = opened(chunk_tokens=24)
    engine.generate(asked(5, 20))
    model.reads.clear()
    engine.generate_all([asked(5, 22), asked(100, 40), asked(200, 6), asked(300, 6)])
    assert (2, 6) in prompt_reads(model)
    assert all(rows == 1 for rows, tokens in prompt_reads(model) if tokens != 6)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_a_row_of_a_batch_is_bit_for_bit_what_it_is_alone(
    architecture: str, precision: str, exported: Callable[..., Path]
) -> None:
    """The logits after each prompt, and what the slot then holds."""
    artifact = ModelArtifact.open(exported(architecture, "text-generation", precision))
    session = InferenceSession(artifact.graph("model"), SessionConfig())
    model, alone = CausalSlots(session, SLOTS, WINDOW), CausalSlots(session, SLOTS, WINDOW)
    counts = np.asarray([5, 2, 9])
    ids = np.zeros((3, 9), np.int64)
    for row, count in enumerate(counts):
        ids[row, :count] = np.random.default_rng(row).integers(4, 300, count)
    read = model.read(1, ids, np.zeros(3, np.int64), np.asarray([4, 9 + 1, 18 + 8]), counts).rows(range(3))
    for row, count in enumerate(counts.tolist()):
        last = np.asarray([count - 1])
        own = logits_of(alone, 0, ids[row : row + 1, :count], np.zeros(1, np.int64), last)[0, 0]
        np.testing.assert_array_equal(read[row], own)
        held, expected = model.save(1 + row, count), alone.save(0, count)
        for name, values in held.items():
            np.testing.assert_array_equal(values, expected[name])


def test_a_graph_of_an_earlier_export_is_still_read(exported: Callable[..., Path]) -> None:
    """It takes `logits_at` of every row, and returns (rows, n, vocab)."""
    graph = ModelArtifact.open(exported("llama", "text-generation")).graph("model")
    model = onnx.load(graph)
    (picked,) = [node for node in model.graph.node if "logits_at" in node.input]
    (flat,) = [node for node in model.graph.node if picked.input[0] in node.output]
    picked.input[0] = flat.input[0]
    del picked.attribute[:]
    picked.attribute.append(onnx.helper.make_attribute("axis", 1))
    (output,) = [one for one in model.graph.output if one.name == "logits"]
    vocab = output.type.tensor_type.shape.dim[-1].dim_value
    output.CopyFrom(onnx.helper.make_tensor_value_info("logits", 1, ["rows", "n", vocab]))
    del model.graph.value_info[:]
    earlier = CausalSlots(InferenceSession(model.SerializeToString(), SessionConfig()), SLOTS, WINDOW)
    today = CausalSlots(InferenceSession(graph, SessionConfig()), SLOTS, WINDOW)
    ids, counts = np.asarray([[5, 6, 7, 8], [9, 10, 0, 0]]), np.asarray([4, 2])
    asked_for = np.asarray([3, 4 + 1, 1])
    for one in (earlier, today):
        one.read(0, ids, np.zeros(2, np.int64), asked_for, counts)
    step = (0, np.asarray([[11], [12]]), counts, np.asarray([1, 0]))
    np.testing.assert_allclose(earlier.read(*step).rows([0, 1]), today.read(*step).rows([0, 1]), atol=1e-5)


@given(st.dictionaries(st.integers(0, 20), st.integers(2, 60), min_size=1), st.integers(60, 500), st.integers(0, 100))
def test_a_batch_is_made_of_neighbours_and_pays_off(tokens: dict[int, int], most: int, run_tokens: int) -> None:
    for slot in tokens:
        batch = batch_around(slot, tokens, most, run_tokens)
        assert slot in batch
        assert set(batch) <= set(tokens)
        padded, total = len(batch) * max(tokens[one] for one in batch), sum(tokens[one] for one in batch)
        assert padded <= most
        assert padded - total <= max(run_tokens, total / 4)


def test_equal_prompts_fill_the_chunk() -> None:
    assert batch_around(3, dict.fromkeys(range(8), 16), 128, 0) == range(8)
    assert batch_around(3, dict.fromkeys(range(8), 16), 64, 0) == range(2, 6)
