"""Packed rows on a machine without CUDA: a stand-in computes the attention, all else is what runs on a GPU.

Runs of fixed shapes go through the same memory in the same thread; only that a CUDA graph replays them is missing.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Encoding

import pipelines
from pipelines.errors import ConfigurationError
from pipelines.runtime import packed_session
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.packed_session import CAPTURED_TOKENS, PackedSession, capacities
from pipelines.runtime.rows import Capacity, EncoderRow
from pipelines.runtime.session_config import SessionConfig
from pipelines.scheduling.scheduler import BatchReport
from tests.packed import on_cpu

Make = Callable[..., Path]
TASK = "text-classification"
INPUTS: dict[str, list[Any]] = {
    TASK: ["Anna Smith wrote the letter.", "no", "the old bridge across the river was built in 1907 " * 3],
    "token-classification": ["Anna Smith lives in Paris.", "no", "Berlin and Anna"],
    "question-answering": [
        {"question": "Who wrote?", "context": "Anna wrote the letter in Paris. " * 6},
        {"question": "Where?", "context": "in Paris"},
    ],
}


@pytest.fixture(scope="module")
def graph(exported: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = on_cpu(exported("bert", TASK, "fp16", device="cuda"), tmp_path_factory.mktemp("packed") / "artifact")
    return ModelArtifact.open(folder).graph("model")


def rows(*lengths: int) -> list[EncoderRow]:
    rng = np.random.default_rng(sum(lengths))
    return [EncoderRow.of(Encoding(), rng.integers(5, 60, n)) for n in lengths]


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("task", INPUTS)
def test_a_task_with_packed_rows_answers_as_with_padded_ones(
    task: str, architecture: str, exported: Make, tmp_path: Path
) -> None:
    packed = pipelines.load(on_cpu(exported(architecture, task, "fp16", device="cuda"), tmp_path / "artifact"))
    padded = pipelines.load(exported(architecture, task))
    inputs = [packed.parse(one) for one in INPUTS[task]]
    parameters = packed.parameters({})
    packed._encoder.warm_up([128])

    together = [row for of_input in packed.preprocess(inputs, parameters) for row in of_input]
    ours: Any = packed.forward(together)
    theirs: Any = padded.forward(together)

    for mine, their in zip(ours, theirs, strict=True):
        for one, other in zip(_arrays(mine), _arrays(their), strict=True):
            np.testing.assert_allclose(one, other, atol=5e-2)


def _arrays(output: Any) -> list[np.ndarray]:
    if isinstance(output, np.ndarray):
        return [output]
    return list(map(np.asarray, output))


def test_a_small_batch_runs_at_a_captured_shape_and_answers_as_it_would_as_it_is(graph: Path) -> None:
    session = PackedSession.open(graph, SessionConfig(), 0, 128)
    batches = [rows(3), rows(9, 1, 4), rows(*[2] * 8), rows(60), rows(100, 100), rows(*[7] * 40)]
    as_they_are = [session.run(batch)["logits"] for batch in batches]
    session.warm_up([16, 128])

    assert [session.capacity(batch) is not None for batch in batches] == [True] * len(batches)
    with ThreadPoolExecutor(4) as pool:
        for index, outputs in enumerate(pool.map(session.run, batches * 5)):
            np.testing.assert_allclose(outputs["logits"], as_they_are[index % len(batches)], atol=1e-3)


def test_a_batch_takes_the_smallest_shape_that_holds_it_and_a_large_one_none(graph: Path) -> None:
    session = PackedSession.open(graph, SessionConfig(), 0, 128)
    assert session.capacity(rows(3)) is None  # nothing is captured yet
    session.warm_up([128])

    shapes = [session.capacity(batch) for batch in (rows(3), rows(63), rows(64), rows(128), rows(*[1] * 8))]
    assert [shape and shape.tokens for shape in shapes] == [64, 64, 128, 256, 256]
    assert session.capacity(rows(*[128] * 16)) is None
    logits = session.run(rows(*[128] * 16))["logits"]
    assert logits.shape == (16, 3)
    assert np.isfinite(logits).all()


def test_captured_shapes_are_few_and_each_has_room_for_filler() -> None:
    shapes = list(capacities(longest=512))
    assert len(shapes) == len(CAPTURED_TOKENS) < 10
    assert shapes == sorted(shapes)
    for shape in shapes:
        assert shape.holds(rows=1, tokens=1, longest=1)
        assert shape.longest <= 512


def test_without_cuda_graphs_every_batch_runs_as_it_is(graph: Path) -> None:
    session = PackedSession.open(graph, SessionConfig(cuda_graphs=False), 0, 128)
    session.warm_up([128])
    assert session.capacity(rows(3)) is None


def test_a_shape_that_cannot_be_captured_is_said_and_batches_run_as_they_are(
    graph: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = PackedSession.open(graph, SessionConfig(), 0, 128)
    # A position above those that the model has fails in the graph, as an operator fails that cannot be captured.
    monkeypatch.setattr(packed_session, "capacities", lambda _longest: [Capacity(512, 8, 512)])
    with caplog.at_level(logging.WARNING):
        session.warm_up([128])
    assert "runs without CUDA graphs" in caplog.text
    assert session.capacity(rows(3)) is None
    assert session.run(rows(3))["logits"].shape == (1, 3)


def test_an_artifact_with_packed_rows_is_refused_elsewhere_than_on_its_device(exported: Make) -> None:
    folder = exported("bert", TASK, "fp16", device="cuda")
    with pytest.raises(ConfigurationError) as caught:
        pipelines.load(folder)
    assert str(caught.value) == (
        f"{folder} was exported for cuda, with packed rows, and device is 'cpu'; export it with --device cpu"
    )


def test_a_scheduler_batches_packed_rows_of_all_lengths_together(exported: Make, tmp_path: Path) -> None:
    pipeline = pipelines.load(on_cpu(exported("bert", TASK, "fp16", device="cuda"), tmp_path / "artifact"))
    given = pipeline.preprocess([f"the bridge {n} " * (n % 12 + 1) for n in range(40)], pipeline.parameters({}))
    alone = [pipeline.forward(of_input)[0].logits for of_input in given]
    reports: list[BatchReport] = []

    async def crowd() -> list[Any]:
        scheduler = pipeline.scheduler(on_batch=reports.append)
        assert scheduler.cost.packed
        completed = await asyncio.gather(*[scheduler.submit(of_input) for of_input in given])
        await scheduler.drain()
        return [one.outputs[0].logits for one in completed]

    for ours, expected in zip(asyncio.run(crowd()), alone, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert any(one.rows > 1 for one in reports)
    assert all(one.padded_tokens == one.read_tokens for one in reports)
