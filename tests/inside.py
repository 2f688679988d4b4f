"""Environments inside the one of these tests, for packages that cannot be beside its own: Makefile."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_VENV = Path(sys.prefix)


def python_of(name: str) -> Path:
    """The Python of an environment, which may not be there yet."""
    return _VENV / name / "bin" / "python"


def installed(name: str) -> Path:
    """The Python of an environment; `make test` installs them all. Skips where the package registry lacks it."""
    import pytest

    python = python_of(name)
    if python.is_file():
        return python
    with (_VENV / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if python.is_file():
            return python
        outer = f"{_VENV}/serve-cpu.installed"  # which is there: this process runs in it
        command = ["make", f"VENV={_VENV}", "-o", outer, f"{_VENV}/{name}.installed"]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "No matching distribution" in made.stderr:
        shutil.rmtree(_VENV / name)
        pytest.skip(f"the package registry lacks what requirements/{name}.lock names: {made.stderr[-300:]}")
    assert made.returncode == 0, made.stderr[-3000:]
    return python
