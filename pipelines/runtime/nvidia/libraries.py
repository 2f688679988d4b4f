"""The shared libraries of CUDA, cuDNN and TensorRT: where they lie, which ones are missing, their versions."""

import ctypes
import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ctypes import byref, c_int, c_size_t
from dataclasses import dataclass
from pathlib import Path

from pipelines.runtime.nvidia import shared_library
from pipelines.runtime.nvidia.driver import CUDA, dotted

_CUDNN = "libcudnn"
_NAMES = {"libcudart": "CUDA", _CUDNN: "cuDNN", "libnvinfer": "TensorRT"}


@dataclass(frozen=True)
class Library:
    """`version` and `path` are those of the library that loads; `problem` says why there is none."""

    name: str
    soname: str
    version: str | None = None
    path: Path | None = None
    problem: str | None = None


def libraries_of(files: Iterable[Path]) -> Iterator[Library]:
    """CUDA, cuDNN and TensorRT as the libraries in `files` need them, where these exist. Loads them."""
    sonames: dict[str, None] = {}
    for file in files:
        with suppress(OSError):
            sonames |= dict.fromkeys(shared_library.needed(file))
    for soname in sonames:
        stem = soname.partition(".so")[0]
        if stem in _NAMES:
            problem = shared_library.load(soname, library_folders())
            if problem is None:
                yield Library(_NAMES[stem], soname, _version(soname), shared_library.path_of(soname))
            else:
                yield Library(_NAMES[stem], soname, problem=problem)


def missing_libraries(library: Path) -> Iterator[tuple[str, str]]:
    """The shared libraries that an execution provider's own needs and that do not load, each with the loader's reason.

    libcuda.so.1 is the driver's and left out. The others are loaded.
    """
    try:
        names = shared_library.needed(library)
    except OSError as error:
        yield library.name, str(error)
        return
    for name in names:
        if name != CUDA and (reason := shared_library.load(name, library_folders())) is not None:
            yield name, reason


def missing_cudnn(tensorrt: Path) -> Iterator[tuple[str, str]]:
    """cuDNN, where it does not load, with the loader's reason.

    CUDA's execution provider loads it by name when the first operator needs it, and names it nowhere before. The one
    of TensorRT, a file of the same package, does.
    """
    with suppress(OSError):
        for name in shared_library.needed(tensorrt):
            if name.startswith(_CUDNN) and (reason := shared_library.load(name, library_folders())) is not None:
                yield name, reason


def library_folders() -> list[Path]:
    """Where CUDA, cuDNN and TensorRT lie beside the dynamic loader's own folders: wheels of NVIDIA, torch, a toolkit.

    No package is imported.
    """
    found = [folder / "lib" for root in _package_folders("nvidia") for folder in sorted(root.glob("*"))]
    found += [*_package_folders("tensorrt_libs"), *(root / "lib" for root in _package_folders("torch"))]
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found += [Path(toolkit) / "lib64" for toolkit in toolkits if toolkit]
    return [folder for folder in found if folder.is_dir()]


def described(name: str, reason: str) -> str:
    """A library with what is wrong with it, where it is more than missing: another version, or the loader's reason."""
    if not reason.endswith("No such file or directory") or not reason.startswith(f"{name}:"):
        return f"{name} ({reason})"
    stem = name.rpartition(".so.")[0]
    others = sorted({one.name for folder in library_folders() for one in folder.glob(f"{stem}.so.[0-9]*")} - {name})
    return f"{name} (there is {', '.join(others)})" if others else name


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


def _package_folders(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    return [Path(one) for one in spec.submodule_search_locations or ()] if spec else []
