"""GPUs as Ray counts them, and NVIDIA's driver and libraries on the page. The libraries are compiled for the test."""

from pathlib import Path

from pipelines.runtime.package import SOURCE_TREE
from tests.pipelines.runtime.native import driver, library, needs_compiler, run

COUNT = "from deployments.doctor.devices import visible_gpus\nprint([gpu.name[-1] for gpu in visible_gpus()])"
PAGE = """
from deployments.doctor.devices import devices
for one in devices(["cuda"]): print(one.level, one.name, one.text, sep=": ")
"""
BUILD = """
__version__ = "913.0"
cuda_version = "913.0"
def get_available_providers(): return ["CUDAExecutionProvider", "CPUExecutionProvider"]
def preload_dlls(): pass
"""


@needs_compiler
def test_ray_counts_the_gpus_that_are_visible(tmp_path: Path) -> None:
    four = driver(tmp_path, gpus=4)
    for visible, names in {
        "2,0": "['2', '0']",
        "1,9": "['1']",
        "": "[]",
        "-1": "[]",
        "GPU-8f,GPU-1a": "['0', '1']",
    }.items():
        assert run(COUNT, libraries=four, CUDA_VISIBLE_DEVICES=visible) == names
    assert run(COUNT, libraries=four) == "['0', '1', '2', '3']"
    assert run(COUNT, libraries=driver(tmp_path / "broken", runs=False)) == "[]"


@needs_compiler
def test_driver_gpus_and_libraries_are_a_line_each(tmp_path: Path) -> None:
    site = tmp_path / "site"
    versions = {
        "libcudart.so.913": "int cudaRuntimeGetVersion(int *version) { *version = 13020; return 0; }",
        "libcudnn.so.909": "#include <stddef.h>\nsize_t cudnnGetVersion(void) { return 91400; }",
    }
    made = [library(site / "nvidia" / "any" / "lib" / name, source) for name, source in versions.items()]
    made.append(library(tmp_path / "gone" / "libnvinfer.so.910"))
    library(site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so", needs=tuple(made[:1]))
    library(site / "onnxruntime" / "capi" / "libonnxruntime_providers_tensorrt.so", needs=tuple(made))
    (site / "onnxruntime" / "__init__.py").write_text(BUILD, encoding="utf-8")
    lines = run(
        PAGE, libraries=driver(tmp_path / "driver", cuda=13000, gpus=2), packages=site, CUDA_VISIBLE_DEVICES="1"
    )
    assert lines.splitlines()[1:] == [
        "error: cuda: the NVIDIA driver 580.65.06 runs CUDA 13.0 at most; install one for CUDA 913.0",
        "note: tensorrt: this onnxruntime has only CUDAExecutionProvider, CPUExecutionProvider: onnxruntime 913.0 "
        f"is built without tensorrt; pip uninstall -y onnxruntime, then pip install -e '{SOURCE_TREE}[serve,gpu]'",
        "ok: driver: NVIDIA 580.65.06, for CUDA up to 13.0",
        "ok: gpu 0: NVIDIA H200 0, compute capability 9.0, 139.7 GiB free of 140.4 GiB",
        "ok: gpu 1: NVIDIA H200 1, compute capability 9.0",
        "note: CUDA_VISIBLE_DEVICES: '1' hides 1 of 2 GPUs",
        f"ok: CUDA: 13.2, {made[0]}",
        f"ok: cuDNN: 9.14.0, {made[1]}",
        "note: TensorRT: libnvinfer.so.910: cannot open shared object file: No such file or directory",
    ]
