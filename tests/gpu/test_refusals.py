"""What a GPU cannot do is refused in one line, before it costs anything."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipelines
from pipelines.errors import ConfigurationError, SextetError
from pipelines.runtime.providers import Device

Make = Callable[..., Path]
TASK = "text-classification"


def test_an_export_of_int8_for_cuda_is_one_line_that_names_fp16(checkpoint: Make, tmp_path: Path) -> None:
    source = str(checkpoint("bert", TASK))
    command = [sys.executable, "-m", "sextet", "export", source, "--task", TASK, "--device", "cuda"]
    asked = [*command, "--precision", "int8", "--output", str(tmp_path / "artifact")]
    said = subprocess.run(asked, capture_output=True, text=True)

    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith("sextet: precision int8 is for the CPU: ")
    assert line.endswith("use --precision fp16 with --device cuda")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_an_artifact_in_int8_is_not_loaded_on_a_gpu(device: Device, exported: Make) -> None:
    folder = exported("bert", TASK, "int8")
    with pytest.raises(ConfigurationError) as refused:
        pipelines.load(folder, device=device)
    assert str(refused.value) == (
        f"device is {device!r}, but {folder} has the precision int8, which is for the CPU; "
        "export it with --precision fp16 --device cuda"
    )


@pytest.mark.usefixtures("cuda_only")
def test_a_batch_beyond_the_memory_bound_is_refused_in_one_line_and_the_next_one_runs(
    exported_for: Make,
) -> None:
    pipeline = pipelines.load(exported_for("bert", TASK), device="cuda", gpu_mem_limit_bytes=128 * 2**20)
    given = [pipeline.parse("a small step " * 40)]
    small, large = (pipeline.preprocess(given * n, pipeline.parameters({})) for n in (1, 8192))
    expected = pipeline.forward(small[0])

    with pytest.raises(SextetError, match=r"^[^\n]*gpu_mem_limit_bytes is 134217728[^\n]*$"):
        pipeline.forward([row for of_input in large for row in of_input])

    (again,) = pipeline.forward(small[0])
    assert again == pytest.approx(expected[0])
