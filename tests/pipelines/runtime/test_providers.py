"""Execution providers: one line names all that a device lacks.

A build of onnxruntime for GPUs cannot run here. Its place takes a package of its shape: a CUDA version, the providers
that it was built with, and their libraries, which need others as the real ones do.
"""

from pathlib import Path

import onnxruntime
import pytest

from pipelines.errors import ConfigurationError
from pipelines.runtime.package import SOURCE_TREE
from pipelines.runtime.providers import built_for, require
from tests.pipelines.runtime.native import driver, library, needs_compiler, run

REQUIRE = """
import sys
from pipelines.errors import ConfigurationError
from pipelines.runtime.providers import require
try: print(*require("cuda"))
except ConfigurationError as error: print(error)
assert "torch" not in sys.modules
"""
REQUIRE_TENSORRT = REQUIRE.replace("cuda", "tensorrt")
GPU_BUILD = """
__version__ = "913.0"
cuda_version = "913.0"  # of which no machine has libraries
def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
def preload_dlls():
    print("Failed to load libtestblas.so.913")
class SessionOptions:
    def add_session_config_entry(self, name, value): pass
def InferenceSession(graph, options, providers, enable_fallback):
    assert enable_fallback == 0
    raise RuntimeError("a.cc:154 CudaCall(ERRTYPE; bool THRW) CUDA failure 36: API call is not supported in the "
                       "installed CUDA driver ; GPU=-1 ; hostname=vm ; expr=cudaSetDevice(info_.device_id);\\n")
"""
PROBE = """
from pipelines.errors import ConfigurationError
from pipelines.runtime.probe import probe
try: probe("cuda")
except ConfigurationError as error: print(error)
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder of packages: onnxruntime for GPUs, and NVIDIA's wheels with the libraries of CUDA and TensorRT."""
    site, wheels = tmp_path / "site", tmp_path / "site" / "nvidia" / "cu913" / "lib"
    toolkit = [library(wheels / name) for name in ("libtestblas.so.913", "libtestrt.so.913")]
    tensorrt = library(site / "tensorrt_libs" / "libnvinfer.so.910")
    libcuda = library(tmp_path / "elsewhere" / "libcuda.so.1")
    library(site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so", needs=(*toolkit, libcuda))
    library(site / "onnxruntime" / "capi" / "libonnxruntime_providers_tensorrt.so", needs=(tensorrt, toolkit[1]))
    (site / "onnxruntime" / "__init__.py").write_text(GPU_BUILD, encoding="utf-8")
    (site / "tensorrt_libs" / "__init__.py").touch()
    return site


def test_the_cpu_is_always_there() -> None:
    assert require("cpu") == ("CPUExecutionProvider",)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has CUDA")
def test_a_build_for_cpus_is_named_with_the_commands_that_replace_it() -> None:
    assert built_for() == (0, 0)
    with pytest.raises(ConfigurationError) as caught:
        require("cuda")
    assert str(caught.value) == (
        f"device is 'cuda', but this onnxruntime has only {', '.join(onnxruntime.get_available_providers())}: "
        f"onnxruntime {onnxruntime.__version__} is built without cuda; "
        f"pip uninstall -y onnxruntime, then pip install -e '{SOURCE_TREE}[serve,gpu]'"
    )


@needs_compiler
def test_libraries_of_wheels_are_found_and_a_driver_with_a_gpu_is_enough(packages: Path, tmp_path: Path) -> None:
    libraries = driver(tmp_path / "driver", cuda=913000)
    assert run(REQUIRE, packages=packages, libraries=libraries) == "CUDAExecutionProvider"
    both = run(REQUIRE_TENSORRT, packages=packages, libraries=libraries)
    assert both == "TensorrtExecutionProvider CUDAExecutionProvider"


@needs_compiler
def test_one_line_names_every_library_that_is_missing_and_the_gpu(packages: Path, tmp_path: Path) -> None:
    for missing in packages.rglob("libtest*.so.913"):
        missing.unlink()
    assert run(REQUIRE, packages=packages, libraries=driver(tmp_path / "driver", cuda=913000, gpus=0)) == (
        "device is 'cuda', but libtestblas.so.913, libtestrt.so.913 cannot be loaded: "
        f"pip install -e '{SOURCE_TREE}[serve,gpu]' brings CUDA 913; "
        "no GPU (cuInit: no CUDA-capable device is detected)"
    )


@needs_compiler
def test_libraries_of_another_version_are_named_beside_those_that_are_missing(packages: Path, tmp_path: Path) -> None:
    (wheel,) = packages.rglob("libtestblas.so.913")
    wheel.rename(wheel.with_suffix(".912"))
    (packages / "tensorrt_libs" / "libnvinfer.so.910").unlink()
    line = run(REQUIRE_TENSORRT, packages=packages, libraries=driver(tmp_path / "driver", cuda=913000))
    assert line == (
        "device is 'tensorrt', but libnvinfer.so.910, "
        "libtestblas.so.913 (there is libtestblas.so.912) cannot be loaded: "
        f"pip install -e '{SOURCE_TREE}[serve,gpu]' brings CUDA 913; pip install 'tensorrt-cu913==910.*'"
    )


@needs_compiler
def test_cudnn_is_missing_although_cudas_provider_loads_without_it(packages: Path, tmp_path: Path) -> None:
    """onnxruntime loads it by name in the first reduction: a replica would start, and fail at its first token."""
    cudnn = library(packages / "nvidia" / "cudnn" / "lib" / "libcudnn.so.909")
    (provider,) = packages.rglob("libonnxruntime_providers_tensorrt.so")
    library(provider, needs=(cudnn,))
    libraries = driver(tmp_path / "driver", cuda=913000)
    assert run(REQUIRE, packages=packages, libraries=libraries) == "CUDAExecutionProvider"
    cudnn.unlink()
    assert run(REQUIRE, packages=packages, libraries=libraries) == (
        f"device is 'cuda', but libcudnn.so.909 cannot be loaded: pip install -e '{SOURCE_TREE}[serve,gpu]' brings "
        "CUDA 913"
    )
    provider.unlink()  # a build without TensorRT, whose cuDNN nobody names
    assert run(REQUIRE, packages=packages, libraries=libraries) == "CUDAExecutionProvider"


@needs_compiler
def test_a_damaged_library_and_an_old_driver_are_named(packages: Path, tmp_path: Path) -> None:
    (wheel,) = packages.rglob("libtestblas.so.913")
    wheel.write_bytes(b"")
    line = run(REQUIRE, packages=packages, libraries=driver(tmp_path / "driver", cuda=12040))
    assert line == (
        f"device is 'cuda', but libtestblas.so.913 ({wheel}: file too short) cannot be loaded: "
        f"pip install -e '{SOURCE_TREE}[serve,gpu]' brings CUDA 913; "
        "the NVIDIA driver 580.65.06 runs CUDA 12.4 at most; install one for CUDA 913.0"
    )


@needs_compiler
def test_a_provider_that_is_not_in_the_package_is_named(packages: Path, tmp_path: Path) -> None:
    (provider,) = packages.rglob("libonnxruntime_providers_cuda.so")
    provider.write_bytes(b"")
    line = run(REQUIRE, packages=packages, libraries=driver(tmp_path / "driver", cuda=913000))
    assert line.startswith(f"device is 'cuda', but {provider.name} ({provider} is not a 64-bit shared library) cannot")


@needs_compiler
def test_a_failure_of_cuda_is_its_number_and_its_text(packages: Path, tmp_path: Path) -> None:
    """The message is onnxruntime's own; the rest of it, source files and types, is left out."""
    line = run(PROBE, packages=packages, libraries=driver(tmp_path / "driver", cuda=913000))
    text = "API call is not supported in the installed CUDA driver"
    assert line == f"device is 'cuda', but CUDA fails (CUDA failure 36: {text})"
