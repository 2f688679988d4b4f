"""InferenceSession: what it shows of a graph, and what it refuses."""

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import psutil
import pytest

from pipelines.errors import ArtifactError, ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import Engine, SessionConfig, out_of_memory, parts, provider_options
from pipelines.runtime.small_graph import Node, Port, small_graph


@pytest.fixture(scope="module")
def graph(exported: Callable[..., Path]) -> Path:
    return ModelArtifact.open(exported("bert", "text-classification")).graph("model")


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def feeds(rows: int, tokens: int) -> dict[str, np.ndarray]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: np.full((rows, tokens), int(name != "token_type_ids"), np.int64) for name in names}


def test_a_session_shows_its_inputs_and_names_its_outputs(graph: Path) -> None:
    session = InferenceSession(graph, SessionConfig())
    assert sorted(session.input_names) == ["attention_mask", "input_ids", "token_type_ids"]
    assert session.input_shapes["input_ids"] == ("batch_size", "sequence_length")
    assert session.input_types["input_ids"] == np.int64
    assert session.output_names == ("logits",)
    outputs = session.run(feeds(2, 5))
    assert list(outputs) == ["logits"]
    assert outputs["logits"].shape == (2, 3)


def test_many_threads_may_run_one_session(graph: Path) -> None:
    session = InferenceSession(graph, SessionConfig(threads=2))
    sizes = [(rows, tokens) for rows in (1, 2, 3) for tokens in (1, 7, 60)]
    expected = [session.run(feeds(*size))["logits"] for size in sizes]
    with ThreadPoolExecutor(4) as pool:
        for index, logits in enumerate(pool.map(lambda size: session.run(feeds(*size))["logits"], sizes * 10)):
            np.testing.assert_allclose(logits, expected[index % len(sizes)], atol=1e-5)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has CUDA")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_onnxruntime_was_not_built_for_is_refused_with_what_there_is(graph: Path, device: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^device is '{device}', but this onnxruntime has only .*CPUExecut"):
        InferenceSession(graph, SessionConfig(device=device))


def test_an_unknown_device_and_no_threads_are_refused(graph: Path) -> None:
    with pytest.raises(ConfigurationError, match="^device is 'tpu'; allowed: cpu, cuda, tensorrt$"):
        InferenceSession(graph, SessionConfig(device=cast(Any, "tpu")))
    with pytest.raises(ConfigurationError, match="^threads is 0; allowed: 1 and above$"):
        InferenceSession(graph, SessionConfig(threads=0))


def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    for path, content in ((tmp_path / "model.onnx", b"not a graph"), (tmp_path / "missing.onnx", None)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            InferenceSession(path, SessionConfig())
        assert str(caught.value).startswith(f"{path} cannot be loaded by onnxruntime: ")
        assert "\n" not in str(caught.value)


def test_cuda_keeps_fp32_exact_and_never_takes_the_attention_kernel_that_reads_offsets() -> None:
    options = provider_options("CUDAExecutionProvider", SessionConfig(device="cuda"))
    assert options == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "sdpa_kernel": "3"}
    assert provider_options("CPUExecutionProvider", SessionConfig(gpu_mem_limit_bytes=1)) == {}


def test_a_bounded_arena_grows_by_what_is_asked_and_cuda_graphs_are_asked_for() -> None:
    config = SessionConfig(device="cuda", gpu_mem_limit_bytes=2**30)
    options = provider_options("CUDAExecutionProvider", config, captures=True)
    assert options["gpu_mem_limit"] == "1073741824"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["enable_cuda_graph"] == "1"


def test_a_tensorrt_engine_covers_every_shape_of_the_inputs_that_the_graph_has(graph: Path) -> None:
    engine = Engine(rows=32, tokens=512, usual=(16, 128), fp16=True)
    options = provider_options("TensorrtExecutionProvider", SessionConfig(device="tensorrt", engine=engine), graph)
    names = InferenceSession(graph, SessionConfig()).input_names
    for kind, shape in (("min", "1x1"), ("opt", "16x128"), ("max", "32x512")):
        assert options[f"trt_profile_{kind}_shapes"] == ",".join(f"{name}:{shape}" for name in names)
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == options["trt_fp16_enable"]
    fp32 = SessionConfig(device="tensorrt", engine=replace(engine, fp16=False))
    assert "trt_fp16_enable" not in provider_options("TensorrtExecutionProvider", fp32, graph)


def test_a_run_on_bound_memory_reads_what_it_holds_now(graph: Path) -> None:
    """On a CPU, where a `graph_id` does nothing: what a CUDA graph replays is read from the same addresses."""
    session = InferenceSession(graph, SessionConfig(), captures=True)
    binding, bound = session.binding(), feeds(2, 5)
    for name, array in bound.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    logits = np.empty((2, 3), np.float32)
    binding.bind_output("logits", session.memory, 0, np.float32, logits.shape, logits.ctypes.data)
    for token in (1, 7):
        bound["input_ids"][:] = token
        session.run_bound(binding, graph_id=1)
        np.testing.assert_allclose(logits, session.run(bound)["logits"], atol=1e-6)


@pytest.mark.parametrize(
    "said",
    [
        "Status Message: bfc_arena.cc:368 Available memory of 1024 is smaller than requested bytes of 2048",
        "Status Message: bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 2830172160",
        "CUDA failure 2: out of memory ; GPU=0",
    ],
)
def test_a_run_without_memory_names_the_bound_and_what_to_do(said: str) -> None:
    config = SessionConfig(device="cuda", gpu_mem_limit_bytes=2**27, arena_bytes=2**26)
    error = out_of_memory(RuntimeError(said), config)
    assert re.fullmatch(
        r"the GPU has no memory for this batch \(gpu_mem_limit_bytes is 134217728; .*\); raise it, or lower "
        r"batching.max_batch_tokens",
        str(error),
    )
    assert out_of_memory(RuntimeError(said), SessionConfig()) is None
    assert out_of_memory(RuntimeError("indices element out of data bounds"), config) is None


def test_weights_that_alone_exceed_the_bound_are_refused_before_they_are_loaded(graph: Path) -> None:
    size = sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
    assert parts(SessionConfig(gpu_mem_limit_bytes=1), [graph]) == [SessionConfig(gpu_mem_limit_bytes=1)]
    twice = [graph, graph]
    assert [one.arena_bytes for one in parts(bounded(2 * size), twice)] == [size, size]
    with pytest.raises(ConfigurationError) as caught:
        parts(bounded(2 * size - 1), twice)
    assert str(caught.value) == (
        f"gpu_mem_limit_bytes is {2 * size - 1}, and the weights alone take {2 * size}, twice as CUDA graphs need "
        "them; cuda_graphs: false halves that"
    )


def test_sessions_and_a_cache_share_one_bound(graph: Path, tmp_path: Path) -> None:
    """Each has the room of its weights, and as much for activations as the others."""
    large = tmp_path / "large.onnx"
    large.write_bytes(b"x" * 10_000_000)
    small = sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
    given = parts(bounded(2**30), [graph, large], cache_bytes=2**29)
    rooms = [(one.arena_bytes or 0) - weights for one, weights in zip(given, (small, 10_000_000), strict=True)]
    assert rooms == [(2**29 - small - 10_000_000) // 2] * 2
    assert provider_options("CUDAExecutionProvider", given[1])["gpu_mem_limit"] == str(given[1].arena_bytes)
    with pytest.raises(ConfigurationError) as caught:
        parts(bounded(2**30), [graph, large], cache_bytes=2**30)
    assert str(caught.value) == (
        f"gpu_mem_limit_bytes is 1073741824, and the weights alone take {small + 10_000_000}, and the KV cache "
        "1073741824; lower slots.slots or slots.max_tokens"
    )


def bounded(limit: int) -> SessionConfig:
    return SessionConfig(device="cuda", gpu_mem_limit_bytes=limit)


def test_what_a_large_run_took_goes_back_to_the_system() -> None:
    """In a process of its own: what else one does changes its memory, too."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        before, full, after = other.submit(resident_around_a_large_run).result()

    assert full - before > 2**25
    assert after - before < 2**24


def resident_around_a_large_run() -> tuple[int, int, int]:
    """Of a MatMul whose output has `side` x `side` float32."""
    matrix, number = np.dtype(np.float32), Port("largest", np.dtype(np.float32), 0)
    nodes = [Node("MatMul", ["a", "b"], ["c"]), Node("ReduceMax", ["c"], ["largest"], {"keepdims": 0})]
    graph = small_graph(nodes, [Port("a", matrix, 2), Port("b", matrix, 2)], [number])
    session = InferenceSession(graph, SessionConfig())

    def product(side: int) -> dict[str, np.ndarray]:
        return {"a": np.ones((side, 1), np.float32), "b": np.ones((1, side), np.float32)}

    session.run(product(2))
    before = resident_bytes()
    session.run(product(4000))
    full = resident_bytes()
    session.release_memory(product(2))
    after = resident_bytes()
    assert session.run(product(2))["largest"] == 1.0
    return before, full, after
