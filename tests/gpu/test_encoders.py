"""Encoders with packed rows: the operator itself, CUDA graphs, kernels and memory.

With SEXTET_TEST_DEVICE=cpu the operator is its stand-in, and runs of fixed shapes are not captured.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Encoding

import pipelines
from export.graphs.encoders.packed import OPERATOR
from export.graphs.encoders.stand_in import write_stand_in
from pipelines.runtime import session_config
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.nvidia.memory import gpu_memory_bytes, host_memory
from pipelines.runtime.packed_session import PackedSession
from pipelines.runtime.providers import Device, find_problems
from pipelines.runtime.rows import Capacity, EncoderRow, PackedRows
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import Engine, SessionConfig
from tests.gpu.conftest import FOLDER
from tests.packed import on_cpu

Make = Callable[..., Path]
TASK = "text-classification"
LENGTHS = ([5], [1, 1, 1], [3, 128, 64, 129, 7], [512, 1, 300], [700, 2])


@pytest.fixture(scope="module")
def packed(device: str, exported: Make, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """An artifact with packed rows, which the device under test can run."""
    folder = exported("bert", TASK, "fp16", device="cuda")
    if device == "cpu":
        folder = on_cpu(folder, tmp_path_factory.mktemp("packed") / "artifact")
    return ModelArtifact.open(folder)


@pytest.fixture
def session(packed: ModelArtifact, device: Device) -> PackedSession:
    return PackedSession.open(packed.graph("model"), SessionConfig(device, cuda_graphs=True), 0, 128)


def rows(*lengths: int) -> list[EncoderRow]:
    rng = np.random.default_rng(sum(lengths))
    return [EncoderRow.of(Encoding(), rng.integers(5, 60, n)) for n in lengths]


# --- the operator ---


@pytest.mark.parametrize("filler", [False, True])
@pytest.mark.parametrize("width", [8, 32, 64, 80, 128])
def test_packed_attention_is_what_its_stand_in_computes(
    width: int, filler: bool, device: Device, tmp_path: Path
) -> None:
    heads = 3
    graph, stand_in = tmp_path / "graph.onnx", tmp_path / "stand_in.onnx"
    onnx.save(attention(heads, width), graph)
    write_stand_in(graph, stand_in)
    reference = InferenceSession(stand_in, SessionConfig())
    tested = InferenceSession(stand_in if device == "cpu" else graph, SessionConfig(device))
    names = ("input_ids", "cumulative_sequence_length", "batch_shape")

    for lengths in LENGTHS:
        capacity = Capacity(2048, 12, 768) if filler else None
        feeds = PackedRows(names, 0).feeds(rows(*lengths), capacity)
        n_tokens = len(feeds["input_ids"])
        qkv = np.random.default_rng(n_tokens).normal(size=(n_tokens, heads, 3, width)).astype(np.float16)
        given = {"qkv": qkv, **{name: feeds[name] for name in names[1:]}}
        ours, theirs = (one.run(given)["attended"][: sum(lengths)] for one in (tested, reference))
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=4e-3, rtol=4e-3)


def attention(heads: int, width: int) -> Any:
    """A graph of the one operator, with a bias."""
    bias = np.random.default_rng(0).normal(size=3 * heads * width).astype(np.float16)
    inputs = [
        helper.make_tensor_value_info("qkv", TensorProto.FLOAT16, ["tokens", heads, 3, width]),
        helper.make_tensor_value_info("cumulative_sequence_length", TensorProto.INT32, ["rows_and_one"]),
        helper.make_tensor_value_info("batch_shape", TensorProto.INT64, [2]),
    ]
    weights = [numpy_helper.from_array(bias, "bias"), numpy_helper.from_array(np.zeros((1, 1), np.int32), "none")]
    nodes = [
        helper.make_node("Expand", ["none", "batch_shape"], ["offset"]),
        helper.make_node(
            OPERATOR,
            ["qkv", "", "", "bias", "offset", "cumulative_sequence_length"],
            ["attended"],
            domain="com.microsoft",
            num_heads=heads,
        ),
    ]
    outputs = [helper.make_tensor_value_info("attended", TensorProto.FLOAT16, ["tokens", heads * width])]
    made = helper.make_graph(nodes, "attention", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


@pytest.mark.usefixtures("cuda_only")
def test_packed_attention_runs_on_a_fused_kernel_at_all_lengths_whatever_the_environment_says(tmp_path: Path) -> None:
    """The kernel without a fused one reads `token_offset`, which packed graphs leave empty."""
    graph = tmp_path / "graph.onnx"
    onnx.save(attention(heads=3, width=64), graph)
    code = f"""
import numpy as np
from pathlib import Path
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
session = InferenceSession(Path({str(graph)!r}), SessionConfig("cuda"))
for n in (4, 128, 600):
    qkv = np.zeros((n, 3, 3, 64), np.float16)
    ends, shape = np.array([0, n], np.int32), np.array([1, n], np.int64)
    session.run({{"qkv": qkv, "cumulative_sequence_length": ends, "batch_shape": shape}})
"""
    environment = {
        **os.environ,
        "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1",
        "ORT_DISABLE_FLASH_ATTENTION": "1",
        "ORT_DISABLE_MEMORY_EFFICIENT_ATTENTION": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kernels = [line.rpartition("SdpaKernel=")[2] for line in done.stdout.splitlines() if "SdpaKernel=" in line]
    assert len(kernels) == 3, done.stdout
    assert all(kernel.startswith(("FLASH_ATTENTION", "EFFICIENT_ATTENTION")) for kernel in kernels)


# --- CUDA graphs ---


def test_every_shape_is_captured_and_replays_what_plain_runs_compute(session: PackedSession) -> None:
    batches = [rows(3), rows(9, 1, 4), rows(*[2] * 8), rows(60), rows(100, 100), rows(*[7] * 40), rows(*[128] * 15)]
    plain = [session.run(batch)["logits"] for batch in batches]
    session.warm_up([])

    assert all(session.capacity(batch) is not None for batch in batches)
    for _ in range(3):
        for batch, expected in zip(batches, plain, strict=True):
            np.testing.assert_allclose(session.run(batch)["logits"], expected, atol=2e-2, rtol=2e-2)


def test_captured_and_plain_runs_of_several_threads_do_not_disturb_each_other(session: PackedSession) -> None:
    batches = [rows(3), rows(60, 5), rows(*[100] * 40), rows(*[20] * 200), rows(128)]
    expected = [session.run(batch)["logits"] for batch in batches]
    session.warm_up([])

    assert [session.capacity(batch) is not None for batch in batches] == [True, True, False, False, True]
    with ThreadPoolExecutor(4) as pool:
        for index, outputs in enumerate(pool.map(session.run, batches * 20)):
            np.testing.assert_allclose(outputs["logits"], expected[index % len(batches)], atol=2e-2, rtol=2e-2)


def test_a_scheduler_on_the_device_answers_a_crowd(packed: ModelArtifact, device: Device) -> None:
    import asyncio

    pipeline = pipelines.load(packed.path, device=device, concurrency=2)
    texts = [f"the bridge number {n} " * (n % 30 + 1) for n in range(300)]
    given = pipeline.preprocess(texts, pipeline.parameters({}))
    alone = [pipeline.forward(of_input)[0].logits for of_input in given]

    async def crowd() -> list[Any]:
        scheduler = pipeline.scheduler()
        completed = await asyncio.gather(*[scheduler.submit(of_input) for of_input in given])
        await scheduler.drain()
        return [one.outputs[0].logits for one in completed]

    for ours, expected in zip(asyncio.run(crowd()), alone, strict=True):
        np.testing.assert_allclose(ours, expected, atol=3e-2, rtol=3e-2)


# --- memory, and TensorRT ---


@pytest.mark.usefixtures("cuda_only")
def test_the_driver_tells_the_memory_of_the_gpu_and_pins_that_of_the_host() -> None:
    import torch

    total = torch.cuda.mem_get_info(0)[1]
    assert gpu_memory_bytes() == pytest.approx(total, rel=0.1)
    assert torch.from_numpy(host_memory(2**20)).is_pinned()


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which TensorRT keeps engines; skips where there is no TensorRT."""
    monkeypatch.setattr(session_config, "_ENGINES", tmp_path)
    if problems := list(find_problems("tensorrt")):
        pytest.skip(problems[0])
    return tmp_path


def test_tensorrt_builds_one_engine_for_all_shapes_and_finds_it_again(exported: Make, engines: Path) -> None:
    graph = ModelArtifact.open(exported("bert", TASK, "fp16", device="tensorrt")).graph("model")
    engine = Engine(rows=8, tokens=64, usual=(4, 32), fp16=True)
    names = ("input_ids", "attention_mask", "token_type_ids")
    for _ in range(2):
        session = InferenceSession(graph, SessionConfig("tensorrt", engine=engine))
        for shape in ((1, 4), (8, 64), (3, 17)):
            session.run({name: np.ones(shape, np.int64) for name in names})
        assert len(list(engines.glob("*.engine"))) == 1
