"""Kept: what takes the tests seconds to make, made once for all processes, and kept between runs.

A folder lies under a digest of everything that it is made from, so a change of the exporter, of a tiny checkpoint or of
a package makes new ones; those that no run has asked for in a week are removed. Nobody may write into one.
"""

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pipelines.runtime.package import runtime_package

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("SEXTET_TEST_CACHE") or "~/.cache/sextet/tests").expanduser()
PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "numpy", "safetensors", "onnx")
EXPORTERS = ("optimum", "optimum-onnx")
UNUSED_S = 7 * 24 * 3600.0


def kept(made_from: str, name: str, build: Callable[[Path], object]) -> Path:
    """The folder CACHE/made_from/name, which `build` makes if it is not there yet; it is given a path that is free."""
    target = CACHE / made_from / name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process that makes the same one is waited for
            if not target.is_dir():
                unfinished = target.with_name(f"{name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                build(unfinished)
                unfinished.rename(target)
    return target


def digest(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def of_checkpoints() -> str:
    """What tiny checkpoints are made from."""
    return digest(*_files([ROOT / "tests" / "tiny_checkpoints.py"]), *_versions(PACKAGES))


def of_artifacts() -> str:
    """What artifacts are made from: tiny checkpoints, and all that the exporter may import."""
    rooms = ("export", "checkpoints", "stores", "pipelines")
    files = [file for room in rooms for file in sorted((ROOT / room).rglob("*.py"))]
    return digest(of_checkpoints(), *_files(files), *_versions(EXPORTERS), *runtime_package())


def tidy(*used: str) -> None:
    """Mark what this run uses, and remove what none has used for long."""
    for name in used:
        (CACHE / name).mkdir(parents=True, exist_ok=True)
        os.utime(CACHE / name)
    for folder in CACHE.iterdir():
        if time.time() - folder.stat().st_mtime > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _files(files: Iterable[Path]) -> list[str]:
    return [f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]


def _versions(packages: Iterable[str]) -> list[str]:
    return [platform.python_version(), *(f"{name} {importlib.metadata.version(name)}" for name in packages)]
