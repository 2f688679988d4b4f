"""The environment of deploy/gpu/install.sh has every package that the tests and measurements on a GPU import."""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.test_requirements import pins

ROOT = Path(__file__).resolve().parents[2]
STARTS = [ROOT / "sextet.py", ROOT / "tests" / "conftest.py", *(ROOT / "tests" / "gpu").glob("*.py")]
STARTS += (ROOT / "benchmarks" / "suites" / "gpu").glob("*.py")


def imported(file: Path) -> Iterator[str]:
    """The modules that a test imports anywhere, and another file at its top: what is inside its functions is for some.

    `from a import b` may mean the module `a.b`.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if file.is_relative_to(ROOT / "tests") else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(module: str) -> Path | None:
    """The file of one of our own modules."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def third_parties(files: list[Path]) -> set[str]:
    """The packages of others that these files import, and the files of ours that they import, and so on."""
    waiting, seen, found = list(files), set[Path](), set[str]()
    while waiting:
        if (file := waiting.pop()) in seen:
            continue
        seen.add(file)
        for module in imported(file):
            top = module.partition(".")[0]
            if (ours := file_of(module)) is not None:
                waiting.append(ours)
            elif file_of(top) is None and not (ROOT / top).is_dir() and top not in sys.stdlib_module_names:
                found.add(top)
    return found


@pytest.mark.parametrize("start", STARTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_is_imported_is_installed(start: Path) -> None:
    held = {*pins("gpu-proof"), "torch"}
    packages = {name: {*map(canonicalize_name, found)} for name, found in packages_distributions().items()}
    assert [name for name in sorted(third_parties([start])) if not packages.get(name, {name}) & held] == []


def test_imports_of_imports_are_found() -> None:
    assert {"pytest", "gguf", "transformers"} <= third_parties([ROOT / "tests" / "conftest.py"])
