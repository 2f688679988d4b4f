"""Borrow: links this Python's PyTorch, and the libraries of CUDA that it came with, into a virtual environment.

    python3 deploy/gpu/borrow.py VENV

An environment with `--system-site-packages` would see everything that the machine has: another ONNX Runtime, another
transformers, and JAX, which transformers then imports. It would also see nothing where python3 is itself that of a
virtual environment.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

PREFIXES = ("nvidia-", "cuda-", "triton")  # of the packages that PyTorch's builds for CUDA require


class BorrowError(Exception):
    """One line: which environment cannot borrow, and why."""


def borrow(environment: Path) -> Distribution:
    """Link into `environment`, and return PyTorch's distribution.

    Raises PackageNotFoundError where there is none, and BorrowError for an environment of another Python.
    """
    torch = distribution("torch")
    found = sorted((environment / "lib").glob("python*/site-packages"))
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if [one.parent.name for one in found] != [here]:
        names = ", ".join(one.parent.name for one in found) or "no Python"
        raise BorrowError(f"{environment} is an environment of {names}, not of {here} alone; name a new one")
    (site_packages,) = found
    for lent in [torch, *(one for one in distributions() if one.metadata["Name"].lower().startswith(PREFIXES))]:
        for entry in _entries(lent):
            link = site_packages / entry.name
            if not link.exists():
                link.symlink_to(entry)
        # A copy without the list of files: pip could follow the links, and remove the machine's own files.
        information = site_packages / f"{lent.metadata['Name'].replace('-', '_')}-{lent.version}.dist-info"
        information.mkdir(exist_ok=True)
        (information / "METADATA").write_text(lent.read_text("METADATA") or "", encoding="utf-8")
    return torch


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
        sys.exit(f"borrow: {sys.executable} has no PyTorch; name another: PYTHON=/path/to/python3")
    except BorrowError as error:
        sys.exit(f"borrow: {error}")
    print(f"torch {lender.version} is that of {lender.locate_file('')}")
