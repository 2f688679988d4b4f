"""The NVIDIA driver and its GPUs, from the driver's own two libraries: NVML, which describes, and CUDA, which computes.

Both come with the driver. No call here takes memory of a GPU.
"""

import ctypes
import os
from ctypes import byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass

NVML, CUDA = "libnvidia-ml.so.1", "libcuda.so.1"
_TEXT_BYTES = 96  # the longest text that the functions below write: NVML_DEVICE_NAME_V2_BUFFER_SIZE

Version = tuple[int, int]
"""Major and minor."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of the machine. Memory is None where the driver does not tell, as where CPU and GPU share it."""

    name: str
    compute_capability: Version
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True)
class Driver:
    """`version` is the driver's own; `cuda` is the newest CUDA that it runs. `gpus` are all of the machine, also those
    that CUDA_VISIBLE_DEVICES hides.
    """

    version: str
    cuda: Version
    gpus: tuple[Gpu, ...]

    @classmethod
    def read(cls) -> "Driver":
        """Raises OSError, one line that says why NVML cannot tell: no driver, or one that does not run."""
        nvml = ctypes.CDLL(NVML)
        _call(nvml, "nvmlInit_v2")
        try:
            version, cuda, n_gpus = ctypes.create_string_buffer(_TEXT_BYTES), c_int(), c_uint()
            _call(nvml, "nvmlSystemGetDriverVersion", version, c_uint(_TEXT_BYTES))
            _call(nvml, "nvmlSystemGetCudaDriverVersion_v2", byref(cuda))
            _call(nvml, "nvmlDeviceGetCount_v2", byref(n_gpus))
            gpus = tuple(_gpu(nvml, index) for index in range(n_gpus.value))
            return cls(version.value.decode(), _version(cuda.value), gpus)
        finally:
            nvml.nvmlShutdown()


def cuda_problem(built_for: Version) -> str | None:
    """Why CUDA programs built for a version find no GPU in this process, in one line; None where they find one."""
    try:
        cuda = ctypes.CDLL(CUDA)
    except OSError as error:
        return f"no NVIDIA driver ({error})"
    version, n_gpus = c_int(), c_int()
    try:
        _call(cuda, "cuDriverGetVersion", byref(version))
        newest = _version(version.value)
        if newest[0] < built_for[0]:
            older = f"the NVIDIA driver{_driver_version()} runs CUDA {dotted(newest)} at most"
            return f"{older}; install one for CUDA {dotted(built_for)}"
        _call(cuda, "cuInit", c_uint(0))
        _call(cuda, "cuDeviceGetCount", byref(n_gpus))
    except OSError as error:
        return f"no GPU ({error}{_visibility()})"
    return None if n_gpus.value else f"no GPU (the driver lists none{_visibility()})"


def dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    handle, name = c_void_p(), ctypes.create_string_buffer(_TEXT_BYTES)
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
    _call(nvml, "nvmlDeviceGetName", handle, name, c_uint(_TEXT_BYTES))
    major, minor, memory = c_int(), c_int(), _Memory()
    _call(nvml, "nvmlDeviceGetCudaComputeCapability", handle, byref(major), byref(minor))
    try:
        _call(nvml, "nvmlDeviceGetMemoryInfo", handle, byref(memory))
    except OSError:
        return Gpu(name.value.decode(), (major.value, minor.value), None, None)
    return Gpu(name.value.decode(), (major.value, minor.value), memory.total, memory.free)


class _Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function that returns 0 or the number of an error; raises OSError with that error's text."""
    if not hasattr(library, function):
        raise OSError(f"{library._name} has no {function}")
    code = getattr(library, function)(*arguments)
    if code != 0:
        raise OSError(f"{function}: {_error_text(library, code)}")


def _error_text(library: ctypes.CDLL, code: int) -> str:
    text = c_char_p()
    if hasattr(library, "nvmlErrorString"):
        library.nvmlErrorString.restype = c_char_p
        text.value = library.nvmlErrorString(c_int(code))
    elif hasattr(library, "cuGetErrorString"):
        library.cuGetErrorString(c_int(code), byref(text))
    return (text.value or b"").decode() or f"error {code}"


def _version(number: int) -> Version:
    """CUDA writes 13.0 as 13000 and 12.4 as 12040."""
    return number // 1000, number % 1000 // 10


def _driver_version() -> str:
    try:
        return f" {Driver.read().version}"
    except OSError:  # NVML is a package of its own in some distributions
        return ""


def _visibility() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}"
