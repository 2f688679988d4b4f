"""Batch: how fast `sextet batch` is beside the bare runtime, and what three kills cost it.

    python -m benchmarks.suites.scale --only batch            both figures
    python -m benchmarks.suites.scale --only batch --quick    few rows: whether it works

    batch_over_raw      rows/s of `sextet batch`, from the first part to the last, over those of the bare runtime's best
                        way and batch size on the same texts, tokenized before: MiniLM-L6 shape, int8, mixed lengths
    batch_resume_lost   rows that are missing or there twice after the command was killed three times (SIGKILL), each
                        time while parts were written, and then ran to its end

The command is a process as users start it: its own Ray, readers, tokenizing, JSON and files are in the measured time,
its start is not. The bare runtime is measured before and after it, as the machine's speed changes.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import Say
from benchmarks.bare import BareRuntime
from benchmarks.figures.result import ROOT
from benchmarks.load.texts import Lengths, counter, synthetic
from benchmarks.suites.cluster import CLASSIFY
from benchmarks.suites.shapes import MINILM_L6, ensure
from benchmarks.suites.suite import Findings, Repeated
from pipelines.errors import SextetError
from pipelines.runtime.artifact import ModelArtifact

MIXED = "lognormal:24,200"
KILLS, WRITTEN = 3, (1, 5, 20)  # parts that are finished when the command is killed
START_S, POLL_S = 120.0, 0.02


class BatchError(SextetError):
    """The command failed; its own message is on stderr."""


@dataclass(frozen=True)
class Pace(Repeated):
    """How many rows, and how long the bare runtime runs."""

    texts: int = 4096
    rows: int = 24_576
    search_s: float = 4.0
    bare_s: float = 6.0
    killed_rows: int = 8192


PACE = Pace(repetitions=2)
QUICK = Pace(repetitions=1, texts=512, rows=2048, search_s=0.5, bare_s=1.0, killed_rows=2048)


def measure_batch(findings: Findings, quick: bool, say: Say) -> None:
    """Note all figures; raises SextetError."""
    pace, artifact = QUICK if quick else PACE, ensure(MINILM_L6, say)
    opened = ModelArtifact.open(artifact)
    longest = opened.manifest.tokenizer.max_length
    texts = synthetic(Lengths.parse(MIXED), pace.texts, 0, counter(opened), longest)
    with tempfile.TemporaryDirectory(prefix="sextet-bench-") as name:
        _measure_speed(findings, pace, artifact, texts, Path(name), say)
        _measure_kills(findings, pace, artifact, texts, Path(name), say)


def _measure_speed(
    findings: Findings, pace: Pace, artifact: Path, texts: Sequence[str], folder: Path, say: Say
) -> None:
    bare = BareRuntime(artifact, texts)
    best = bare.best(pace.search_s)
    say(f"bare: {best.rows_per_s:.0f} rows/s, {best.way}, batches of {best.batch_size}")
    rows = _write(folder / "rows.jsonl", texts, pace.rows)
    for repetition in range(pace.repetitions):
        before = bare.run(best.way, best.batch_size, pace.bare_s)
        command = _command(artifact, rows, folder / f"answers-{repetition}.jsonl")
        began_at = time.time()
        _finish(command)
        after = bare.run(best.way, best.batch_size, pace.bare_s)
        result = _result(folder / f"answers-{repetition}.batch.json")
        raw_per_s = mean([before.rows_per_s, after.rows_per_s])
        start_s = result["first_part_at"] - began_at
        bare_runs = [before.figures(), after.figures()]
        findings.raw.append({"measurement": "batch", "bare": bare_runs, "batch": result, "start_s": start_s})
        findings.note(batch_over_raw=result["rows_per_s"] / raw_per_s)
        say(f"batch: {result['rows_per_s']:.0f} rows/s, bare {before.rows_per_s:.0f} and {after.rows_per_s:.0f}")


def _measure_kills(
    findings: Findings, pace: Pace, artifact: Path, texts: Sequence[str], folder: Path, say: Say
) -> None:
    rows, answers = _write(folder / "killed.jsonl", texts, pace.killed_rows), folder / "killed-answers.jsonl"
    command = [*_command(artifact, rows, answers), "--shard-rows", "64"]
    parts = answers.with_name(f"{answers.name}.parts")
    for kill in range(1, KILLS + 1):
        more = _kill(command, parts, WRITTEN[kill % len(WRITTEN)])
        say(f"kill {kill}: {more} parts more were finished")
    _finish(command)
    found = Counter(json.loads(line)["id"] for line in answers.read_text(encoding="utf-8").splitlines())
    lost = sum(abs(found[number] - 1) for number in range(pace.killed_rows))
    findings.note(batch_resume_lost=float(lost))
    say(f"after {KILLS} kills: {lost} rows lost or twice")


def _kill(command: list[str], parts: Path, least: int) -> int:
    """Start the command, and kill it once it has finished `least` parts more; returns how many it has."""
    before, give_up_at = _count(parts), time.monotonic() + START_S
    process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stderr=subprocess.DEVNULL)
    while _count(parts) < before + least:
        if process.poll() is not None or time.monotonic() > give_up_at:
            process.kill()
            raise BatchError(f"{least} parts were not finished before the command ended, or within {START_S:.0f} s")
        time.sleep(POLL_S)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _count(parts) - before


def _count(parts: Path) -> int:
    return sum(not one.name.startswith(".") for one in parts.iterdir()) if parts.is_dir() else 0


def _write(file: Path, texts: Sequence[str], count: int) -> Path:
    lines = (json.dumps({"id": number, "text": texts[number % len(texts)]}) for number in range(count))
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def _command(artifact: Path, rows: Path, answers: Path) -> list[str]:
    options = ["--task", CLASSIFY.name, "--model", str(artifact), "--keep", "id"]
    return [sys.executable, "-m", "sextet", "batch", *options, "--input", str(rows), "--output", str(answers)]


def _finish(command: list[str]) -> None:
    if subprocess.run(command, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL, check=False).returncode:
        raise BatchError("sextet batch failed; its own message is above")


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def _result(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["result"]
    return found
