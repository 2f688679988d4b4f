"""The libraries of CUDA, cuDNN and TensorRT that this onnxruntime was built for: their versions, and where they lie."""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from ctypes import byref, c_int, c_size_t
from dataclasses import dataclass

from pipelines.runtime import shared_library
from pipelines.runtime.nvidia import dotted
from pipelines.runtime.providers import LIBRARIES, library_file, library_folders, preload

_NAMES = {"libcudart": "CUDA", "libcudnn": "cuDNN", "libnvinfer": "TensorRT"}


@dataclass(frozen=True)
class CudaLibrary:
    """`version` and `path` are those of the library that loads; `problem` says why there is none."""

    name: str
    soname: str
    version: str | None = None
    path: str | None = None
    problem: str | None = None


def cuda_libraries() -> Iterator[CudaLibrary]:
    """In the versions that the execution providers' own libraries name; nothing for a build for CPUs. Loads them."""
    preload()  # where it found some, the execution provider takes these
    sonames: dict[str, None] = {}
    for provider in LIBRARIES:
        with suppress(OSError):
            sonames |= dict.fromkeys(shared_library.needed(library_file(provider)))
    for soname in sonames:
        stem = soname.partition(".so")[0]
        if stem in _NAMES:
            problem = shared_library.load(soname, library_folders())
            if problem is None:
                path = shared_library.path_of(soname)
                yield CudaLibrary(_NAMES[stem], soname, _version(soname), str(path) if path else None)
            else:
                yield CudaLibrary(_NAMES[stem], soname, problem=problem)


def _version(soname: str) -> str | None:
    """By the function that each library has for it; no GPU is needed."""
    library = ctypes.CDLL(soname)
    with suppress(AttributeError):
        if soname.startswith("libcudart"):
            number = c_int()
            library.cudaRuntimeGetVersion(byref(number))
            return dotted((number.value // 1000, number.value % 1000 // 10))
        function = library.cudnnGetVersion if soname.startswith("libcudnn") else library.getInferLibVersion
        function.restype = c_size_t if soname.startswith("libcudnn") else c_int
        count = int(function())
        return f"{count // 10_000}.{count % 10_000 // 100}.{count % 100}"
    return None
