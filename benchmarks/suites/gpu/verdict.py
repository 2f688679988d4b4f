"""Verdict: the results of all phases as one result, and whether every bar is met.

phases.tsv        of deploy/gpu/proof.sh: phase, exit status, seconds, the last line of one that failed
tests*.xml        of pytest: the share of the parity tests that passed
encoders.json, generators.json
gpu.json          what all of these make
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

from benchmarks.figures.bar import shown
from benchmarks.figures.bars import GPU_FIGURES
from benchmarks.figures.report import PAGE, write_report
from benchmarks.figures.result import Result, default_path, describe
from benchmarks.scenarios import bottlenecks
from benchmarks.suites.gpu.phase import Setting

NAME = "gpu"
PHASES = ("encoders", "generators")
PARITY = "test_parity"
TESTS = "tests"  # the phase that they belong to
TESTED = (0, 1)  # pytest's exit status where every test ran, whether it passed or not
LISTS = ("points", "raw", "peers")
ASKED_OF_THE_DRIVER = "name,memory.total,driver_version"


@dataclass(frozen=True)
class Ended:
    """A phase of proof.sh; `reason` is empty for one that succeeded."""

    phase: str
    status: int
    seconds: float
    reason: str


def report(setting: Setting, *, publish: bool) -> bool:
    """Write gpu.json; print the verdict on each figure and each phase that failed. With `publish`, also write what the
    repository keeps. True where every phase succeeded and, with `publish`, every bar is met: without, the windows or
    the device are too small for one.
    """
    result = merged(setting)
    result.write(setting.folder / f"{NAME}.json")
    if publish:
        result.write(default_path(NAME))
        write_report()
        shutil.copyfile(PAGE, setting.folder / PAGE.name)
    for name, verdict in verdicts(result).items():
        bar, values = str(GPU_FIGURES[name].bar or ""), result.figures.get(name)
        print(f"{name:32}{shown(median(values)) if values else '':>10}  {bar:10}{verdict}")
    failed = [one for one in ended(setting.folder) if one.status]
    for one in failed:
        print(f"{one.phase} failed after {one.seconds:.0f} s with status {one.status}: {one.reason}")
    print(json.dumps(result.headline()))
    return not failed and (all_met(result) or not publish)


def verdicts(result: Result) -> dict[str, str]:
    """Of each figure: whether it meets its bar and by how much, `not measured`, or nothing where it has no bar."""
    content = asdict(result)
    return {
        name: figure.verdict(content, result.figures[name]) if name in result.figures else "not measured"
        for name, figure in GPU_FIGURES.items()
    }


def all_met(result: Result) -> bool:
    """Whether every bar is met; one whose figure is missing is not."""
    return all(
        verdict.startswith("met") for name, verdict in verdicts(result).items() if GPU_FIGURES[name].bar is not None
    )


def merged(setting: Setting) -> Result:
    """One result of what the phases wrote; figures of a phase that did not run are `missing`."""
    content: dict[str, Any] = {"load": {}, "figures": {}, **{name: [] for name in LISTS}}
    if (parity := parity_share(setting.folder)) is not None:
        content["figures"]["gpu_parity"] = [parity]
    for phase in PHASES:
        file = setting.folder / f"{phase}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        content["load"][phase] = found["load"]
        content["figures"] |= found["figures"]
        for name in LISTS:
            content[name] += found[name]
    return Result(
        name=NAME,
        scenario=NAME,
        command="deploy/gpu/proof.sh",
        warnings=bottlenecks(content["points"]),
        missing=[name for name in GPU_FIGURES if name not in content["figures"]],
        machine=describe() | ({"gpu": gpu()} if setting.device != "cpu" else {}),
        **content,
    )


def parity_share(folder: Path) -> float | None:
    """The share of the parity tests that passed; those that were skipped did not. None where none ran, and where pytest
    did not come to its end: the tests that it did not reach are not in its file.
    """
    if any(one.phase == TESTS and one.status not in TESTED for one in ended(folder)):
        return None
    cases = [
        case
        for file in sorted(folder.glob("tests*.xml"))
        for case in ElementTree.parse(file).iter("testcase")
        if case.get("classname", "").endswith(PARITY)
    ]
    return sum(not len(case) for case in cases) / len(cases) if cases else None


def ended(folder: Path) -> list[Ended]:
    """The phases that proof.sh has run into this folder, each as it ended last."""
    file = folder / "phases.tsv"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    last = {}
    for line in lines:
        phase, status, seconds, reason = line.split("\t", 3)
        last[phase] = Ended(phase, int(status), float(seconds), reason)
    return list(last.values())


def gpu() -> str:
    """Name, memory and driver of the first GPU, as its driver says them."""
    asked = ["nvidia-smi", f"--query-gpu={ASKED_OF_THE_DRIVER}", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
        name, memory, driver = (one.strip() for one in said.partition("\n")[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        print(f"the driver does not name the GPU: {error}", file=sys.stderr)
        return "unknown GPU"
    return f"{name}, {memory}, driver {driver}"
