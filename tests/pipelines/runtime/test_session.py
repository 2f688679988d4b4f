"""InferenceSession: what it shows of a graph, and what it refuses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest

from pipelines.errors import ArtifactError, ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession, SessionConfig


@pytest.fixture(scope="module")
def graph(exported: Callable[..., Path]) -> Path:
    return ModelArtifact.open(exported("bert", "text-classification")).graph("model")


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
