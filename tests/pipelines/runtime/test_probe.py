"""A probe runs a graph on a device in a process of its own; whatever happens in there becomes one line."""

from pathlib import Path

import onnxruntime
import pytest

from pipelines.errors import ConfigurationError
from pipelines.runtime.probe import probe, run
from pipelines.runtime.providers import require

CRASH = "import os, sys; sys.stderr.write('gone\\n'); sys.stderr.flush(); os.abort()"


def test_the_cpu_computes() -> None:
    probe("cpu")
    run("cpu")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has CUDA")
def test_a_device_that_is_missing_is_the_line_that_a_replica_would_say() -> None:
    with pytest.raises(ConfigurationError) as here:
        require("tensorrt")
    with pytest.raises(ConfigurationError) as there:
        probe("tensorrt")
    assert str(there.value) == str(here.value)


def test_a_crash_is_one_line_with_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigurationError) as caught:
        probe("cuda")
    assert str(caught.value) == "device is 'cuda', but onnxruntime crashes on it (signal 6: gone)"
