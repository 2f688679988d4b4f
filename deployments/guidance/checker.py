"""Checker: asks the program check.py whether a grammar compiles, and ends it where that takes too long or too much."""

import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).with_name("check.py")
TIME_S = 2.0


class Checker:
    """One process, which starts with the first question and again after one that it did not survive; thread-safe."""

    def __init__(self, time_s: float = TIME_S) -> None:
        self._time_s = time_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def problem(self, grammar: str, schema: Any = None) -> tuple[str | None, list[str | int]]:
        """Why a grammar does not compile, None where it does, and the path of the part of `schema` that is to blame."""
        question = json.dumps({"grammar": grammar, "schema": schema}).encode() + b"\n"
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(question)
                process.stdin.flush()
                answer = self._line(process)
            except OSError:
                answer = b""
            if not answer:
                self._end()
        if answer is None:
            return f"it takes longer than {self._time_s:g} s to compile", []
        if not answer:
            return "it takes too much memory to compile", []
        given = json.loads(answer)
        return given["problem"], given["path"]

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            # -P: the folder of the program does not hide modules of other packages.
            command = [sys.executable, "-P", str(_PROGRAM)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._finalizer = weakref.finalize(self, _end, self._process)
        return self._process

    def _line(self, process: "subprocess.Popen[bytes]") -> bytes | None:
        """The next line of a process; empty where it has ended, None where it is not there in time."""
        assert process.stdout is not None
        ends_at, line = time.monotonic() + self._time_s, b""
        while not line.endswith(b"\n"):
            left_s = ends_at - time.monotonic()
            if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
                return None
            more = os.read(process.stdout.fileno(), 2**16)
            if not more:
                return b""
            line += more
        return line

    def _end(self) -> None:
        self._process = None
        self._finalizer()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._end()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # of what was not written yet
            pipe.close()
