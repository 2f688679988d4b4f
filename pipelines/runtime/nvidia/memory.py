"""Memory of a GPU and of its host, by the CUDA driver: ONNX Runtime's Python package neither pins nor tells sizes."""

import ctypes
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

_PORTABLE = 1  # pinned for every context of the process
_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class _Driver:
    """libcuda, its first device and the context that ONNX Runtime uses, too."""

    library: Any
    device: ctypes.c_int
    context: ctypes.c_void_p


@cache
def _driver() -> _Driver | None:
    """None on a machine without a driver or a GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    context, device = ctypes.c_void_p(), ctypes.c_int()
    ready = (
        library.cuInit(0) == 0
        and library.cuDeviceGet(ctypes.byref(device), 0) == 0
        and library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    )
    return _Driver(library, device, context) if ready else None


def gpu_memory_bytes() -> int | None:
    """The memory of the GPU that this process sees first; None without one."""
    driver, size = _driver(), ctypes.c_size_t()
    if driver is None or driver.library.cuDeviceTotalMem_v2(ctypes.byref(size), driver.device) != 0:
        return None
    return size.value


def host_memory(size_bytes: int) -> np.ndarray:
    """Uninitialized host memory, (size_bytes,) uint8, pinned where the driver grants it: a GPU then copies it while
    kernels run. It is freed with the last array that reads it.
    """
    driver, address = _driver(), ctypes.c_void_p()
    if driver is None or size_bytes == 0:
        return np.empty(size_bytes, np.uint8)
    driver.library.cuCtxPushCurrent_v2(driver.context)
    granted = driver.library.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(size_bytes), _PORTABLE) == 0
    driver.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    if not granted:
        return np.empty(size_bytes, np.uint8)
    owner = (ctypes.c_uint8 * size_bytes).from_address(address.value or 0)
    weakref.finalize(owner, driver.library.cuMemFreeHost, address)
    return np.ctypeslib.as_array(owner)


class PinnedFeeds:
    """Copies the feeds of a run into pinned memory, which each thread keeps for its next run."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same feeds; they last until the next call of this thread."""
        size = sum(_aligned(array.nbytes) for array in feeds.values())
        memory: np.ndarray | None = getattr(self._of_thread, "memory", None)
        if memory is None or len(memory) < size:
            memory = self._of_thread.memory = host_memory(2 * size)
        pinned, at = {}, 0
        for name, array in feeds.items():
            pinned[name] = memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            np.copyto(pinned[name], array)
            at += _aligned(array.nbytes)
        return pinned


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
