"""Execution providers: which ones a device takes, and what is missing where one cannot start."""

from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Literal

from pipelines.errors import ConfigurationError
from pipelines.misfit import nearest, shown
from pipelines.runtime.nvidia.driver import Version, cuda_problem
from pipelines.runtime.nvidia.libraries import described, missing_cudnn, missing_libraries
from pipelines.runtime.package import install_command, runtime_package

Device = Literal["cpu", "cuda", "tensorrt"]

# The first is the requested one; TensorRT needs the second for operators that it lacks.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
_TENSORRT = ("libnvinfer", "libnvonnxparser")
_OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "trt": "tensorrt"}


def require(device: Device) -> tuple[str, ...]:
    """The execution providers of a device, in order of preference, with the shared libraries that they need loaded.

    Raises ConfigurationError, one line that names all that is missing: the package, libraries, the driver, a GPU.
    """
    if device not in PROVIDERS:
        raise unknown_device("device", device)
    runtime_package()
    if problems := list(find_problems(device)):
        raise ConfigurationError(f"device is {device!r}, but {'; '.join(problems)}")
    return PROVIDERS[device]


def unknown_device(where: str, device: str) -> ConfigurationError:
    """The error for a device that does not exist, with the nearest. None is near `cpu`: gpu and tpu are spelled so."""
    meant = _OTHER_NAMES.get(device.lower())
    hint = f" (did you mean {meant!r}?)" if meant else nearest(device, [name for name in PROVIDERS if name != "cpu"])
    return ConfigurationError(f"{where} is {shown(device)}{hint}; allowed: {', '.join(PROVIDERS)}")


def find_problems(device: Device) -> Iterator[str]:
    """What keeps a device's providers from starting, one line each. Loads the shared libraries that are there."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if not set(PROVIDERS[device]) <= set(available):
        yield f"this onnxruntime has only {', '.join(available)}: {_wrong_package(device)}"
        return
    if device == "cpu":
        return
    preload()
    libraries = [library_file(provider) for provider in PROVIDERS[device]]
    missing = {name: reason for library in libraries for name, reason in missing_libraries(library)}
    missing |= missing_cudnn(library_file("TensorrtExecutionProvider"))
    if missing:
        yield f"{', '.join(described(*one) for one in missing.items())} cannot be loaded: {_remedy(missing)}"
    if (problem := cuda_problem(built_for())) is not None:
        yield problem


def library_file(provider: str) -> Path:
    """The execution provider's own shared library, where this onnxruntime has it."""
    import onnxruntime

    return Path(onnxruntime.__file__).parent / "capi" / LIBRARIES[provider]


def built_for() -> Version:
    """The CUDA that this onnxruntime was built for; (0, 0) for a build for CPUs."""
    import onnxruntime

    major, _, minor = (getattr(onnxruntime, "cuda_version", "") or "0").partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


@cache
def preload() -> None:
    """Load what onnxruntime's CUDA provider needs, and what it loads later by name: cuDNN, cuFFT, NVRTC.

    onnxruntime knows which of them its build wants. It prints about those that it does not find; `missing_libraries`
    says more.
    """
    import onnxruntime

    with redirect_stdout(StringIO()):
        onnxruntime.preload_dlls()


def _wrong_package(device: Device) -> str:
    package, version = runtime_package()
    remedy = f"pip uninstall -y {package}, then {install_command('serve,gpu')}"
    return f"{package} {version} is built without {device}; {remedy}"


def _remedy(missing: Iterable[str]) -> str:
    """What to install, from the versions in the names of the libraries that are missing."""
    cuda = built_for()[0]
    tensorrt = {name.rpartition(".")[2] for name in missing if name.startswith("libnvinfer.so.")}
    parts = [f"pip install 'tensorrt-cu{cuda}=={number}.*'" for number in tensorrt]
    if any(not name.startswith(_TENSORRT) for name in missing):
        parts.insert(0, f"{install_command('serve,gpu')} brings CUDA {cuda}")
    return "; ".join(parts)
