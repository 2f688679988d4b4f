"""Fresh: the seconds from a clone of the source tree to `ready`, with nothing cached but downloads.

    python -m benchmarks.suites.fresh          prints the seconds

The clone has the last commit, an environment and caches of its own; pip's cache of downloads stays. `make serve`
listens on the port of cluster.yaml, which has to be free.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from benchmarks import Say
from benchmarks.figures.result import ROOT
from benchmarks.suites.suite import say
from pipelines.errors import SextetError

MOST_S = 1800.0
STOP_S = 60.0


class FreshError(SextetError):
    """`make serve` ended before it was ready; its own message is on stderr."""


def fresh_serve_s(say: Say) -> float:
    """Clone, `make serve`, and stop what then runs; raises FreshError."""
    with tempfile.TemporaryDirectory(prefix="sextet-fresh-") as folder:
        clone = Path(folder) / "sextet"
        own = {"SEXTET_CACHE": str(Path(folder) / "cache"), "VIRTUAL_ENV": "", "PYTHONPATH": ""}
        environment = os.environ | own
        began_at = perf_counter()
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
        process = subprocess.Popen(
            ["make", "serve"],
            cwd=clone,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            start_new_session=True,
        )
        try:
            return _ready_after(process, began_at, say)
        finally:
            _stop(process)


def _ready_after(process: "subprocess.Popen[str]", began_at: float, say: Say) -> float:
    assert process.stdout is not None
    for line in process.stdout:
        seconds = perf_counter() - began_at
        say(f"{seconds:6.1f} s  {line.rstrip()}")
        if line.startswith("ready "):
            return seconds
        if seconds > MOST_S:
            break
    raise FreshError("make serve was not ready; its own message is above")


def _stop(process: "subprocess.Popen[str]") -> None:
    """End `make` and what it runs, which are a session of their own."""
    with suppress(ProcessLookupError):  # it ended by itself
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


if __name__ == "__main__":
    try:
        print(f"{fresh_serve_s(say):.1f}")
    except SextetError as error:
        sys.exit(f"fresh: {error}")
