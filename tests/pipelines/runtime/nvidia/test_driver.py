"""The driver and its GPUs, read from libraries that were compiled for the test, found as the real ones are."""

from pathlib import Path

import pytest

from pipelines.runtime.nvidia.driver import Driver, cuda_problem
from tests.pipelines.runtime.native import driver, needs_compiler, run

READ = """
from pipelines.runtime.nvidia.driver import Driver
try: print(Driver.read())
except OSError as error: print(error)
"""
PROBLEM = "from pipelines.runtime.nvidia.driver import cuda_problem\nprint(cuda_problem((13, 0)))"
has_driver = Path("/proc/driver/nvidia").exists()


@needs_compiler
def test_the_driver_tells_versions_and_gpus(tmp_path: Path) -> None:
    read = run(READ, libraries=driver(tmp_path, cuda=12040, gpus=2), CUDA_VISIBLE_DEVICES="")
    first = "Gpu(name='NVIDIA H200 0', compute_capability=(9, 0), total_bytes=150754820096, free_bytes=150000000000)"
    second = "Gpu(name='NVIDIA H200 1', compute_capability=(9, 0), total_bytes=None, free_bytes=None)"
    assert read == f"Driver(version='580.65.06', cuda=(12, 4), gpus=({first}, {second}))"


@needs_compiler
def test_a_driver_that_does_not_run_says_why(tmp_path: Path) -> None:
    assert run(READ, libraries=driver(tmp_path, runs=False)) == "nvmlInit_v2: Driver Not Loaded"


@needs_compiler
def test_cuda_finds_a_gpu_or_says_what_is_wrong(tmp_path: Path) -> None:
    assert run(PROBLEM, libraries=driver(tmp_path / "fits", cuda=13010)) == "None"
    old = run(PROBLEM, libraries=driver(tmp_path / "old", cuda=12040))
    assert old == "the NVIDIA driver 580.65.06 runs CUDA 12.4 at most; install one for CUDA 13.0"
    none = driver(tmp_path / "none", gpus=0)
    reason = "cuInit: no CUDA-capable device is detected"
    assert run(PROBLEM, libraries=none) == f"no GPU ({reason})"
    assert run(PROBLEM, libraries=none, CUDA_VISIBLE_DEVICES="") == f"no GPU ({reason}; CUDA_VISIBLE_DEVICES is '')"


@pytest.mark.skipif(has_driver, reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver_names_the_library_that_it_lacks() -> None:
    with pytest.raises(OSError, match=r"^libnvidia-ml\.so\.1: cannot open shared object file"):
        Driver.read()
    assert str(cuda_problem((13, 0))).startswith("no NVIDIA driver (libcuda.so.1: cannot open shared object file")
