"""Borrow: links this Python's PyTorch, and the libraries of CUDA that it came with, into a virtual environment.

    python3 deploy/gpu/borrow.py VENV

An environment with `--system-site-packages` would see everything that the machine has: another ONNX Runtime, another
transformers, and JAX, which transformers then imports. It would also see nothing where python3 is itself that of a
virtual environment.
"""

import runpy
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

CUDA = "13"
"""The major version that onnxruntime-gpu is built for (requirements/gpu-proof.lock)."""
ANOTHER = "name another: PYTHON=/path/to/python3"
PREFIXES = ("nvidia-", "cuda-", "triton")  # of the packages that PyTorch's builds for CUDA require


class BorrowError(Exception):
    """One line: which environment cannot borrow, or which PyTorch it cannot borrow, and why."""


def borrow(environment: Path) -> Distribution:
    """Link into `environment`, and return PyTorch's distribution.

    Raises PackageNotFoundError where there is none, and BorrowError for one without CUDA or for another CUDA, and for
    an environment of another Python.
    """
    torch = distribution("torch")
    if (problem := _problem(torch)) is not None:
        raise BorrowError(f"PyTorch {torch.version} of {sys.executable} {problem}; {ANOTHER}")
    found = sorted((environment / "lib").glob("python*/site-packages"))
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if [one.parent.name for one in found] != [here]:
        names = ", ".join(one.parent.name for one in found) or "no Python"
        raise BorrowError(f"{environment} is an environment of {names}, not of {here} alone; name a new one")
    (site_packages,) = found
    for lent in [torch, *(one for one in distributions() if (one.metadata["Name"] or "").lower().startswith(PREFIXES))]:
        for entry in _entries(lent):
            link = site_packages / entry.name
            if not link.exists():
                link.unlink(missing_ok=True)  # one that points to a PyTorch that has gone
                link.symlink_to(entry)
        # A copy without the list of files: pip could follow the links, and remove the machine's own files.
        information = site_packages / f"{lent.metadata['Name'].replace('-', '_')}-{lent.version}.dist-info"
        information.mkdir(exist_ok=True)
        (information / "METADATA").write_text(lent.read_text("METADATA") or "", encoding="utf-8")
    return torch


def _problem(torch: Distribution) -> str | None:
    """Why its libraries of CUDA do not fit; None where they do. Importing it would take seconds."""
    try:
        cuda = runpy.run_path(str(Path(str(torch.locate_file("torch")), "version").with_suffix(".py"))).get("cuda")
    except OSError as error:
        return f"is not whole ({error})"
    if cuda is None:
        return f"is built without CUDA; the runtime needs CUDA {CUDA}"
    return None if cuda.partition(".")[0] == CUDA else f"is for CUDA {cuda}; the runtime needs CUDA {CUDA}"


def _entries(lent: Distribution) -> Iterator[Path]:
    """Modules and folders of a distribution that lie directly in its site-packages."""
    names = {file.parts[0] for file in lent.files or ()}
    for name in sorted(names):
        entry = Path(str(lent.locate_file(name))).absolute()
        if name not in ("..", "__pycache__") and not name.endswith(".dist-info") and entry.exists():
            yield entry


if __name__ == "__main__":
    try:
        lender = borrow(Path(sys.argv[1]))
    except PackageNotFoundError:
        sys.exit(f"borrow: {sys.executable} has no PyTorch; {ANOTHER}")
    except BorrowError as error:
        sys.exit(f"borrow: {error}")
    print(f"torch {lender.version} is that of {lender.locate_file('')}")
