"""Result: one JSON file per measurement, with all that is needed to judge and to repeat it: load, figures, machine."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pipelines.errors import ConfigurationError
from pipelines.runtime.package import runtime_package

ROOT = Path(__file__).parents[2]
IN_SOURCE_TREE = (ROOT / "pyproject.toml").is_file()  # an installed package has none
RESULTS = ROOT / "benchmarks" / "results"
SCHEMA_VERSION = 1
PACKAGES = ("ray", "tokenizers", "numpy")  # beside the runtime


def describe() -> dict[str, str]:
    """Processor, cores, memory, kernel, versions and commit, each as text."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "system": f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "versions": ", ".join([_runtime(), *(f"{name} {_version(name)}" for name in PACKAGES)]),
        "commit": _commit() if IN_SOURCE_TREE else f"none, sextet {_version('sextet')}",
        "load_average": f"{os.getloadavg()[0]:.1f} processes ran on average in the minute before this was written",
    }


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _runtime() -> str:
    try:
        return " ".join(runtime_package())
    except ConfigurationError:  # a machine that only sends the load
        return "onnxruntime absent"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """The commit of the source tree, with a mark where files differ from it."""
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str:
    try:
        finished = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return "unknown"
    return finished.stdout.strip()


@dataclass(frozen=True)
class Result:
    """`figures` hold one value per repetition; `points` every measured window; `load` what was sent.

    `peers` hold the inputs per second of every server on every workload, ours among them. `missing` names the figures
    that a suite has and this run could not measure.
    """

    name: str
    scenario: str
    command: str
    load: Mapping[str, Any]
    figures: Mapping[str, list[float]]
    points: list[dict[str, Any]]
    raw: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    machine: Mapping[str, str] = field(default_factory=describe)
    written_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    schema: int = SCHEMA_VERSION

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ConfigurationError for a file that is no result of this version."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA_VERSION:
                raise ConfigurationError(f"{path} has the schema {content['schema']}; allowed: {SCHEMA_VERSION}")
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path} is no result of sextet bench: {error}") from None

    def write(self, path: Path) -> None:
        """Raises ConfigurationError where that is not possible."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}; choose another --output") from None

    def headline(self) -> dict[str, Any]:
        """Name, medians and the names of missing figures, for the one line that programs read."""
        medians = {name: statistics.median(values) for name, values in self.figures.items()}
        missing = {"missing": self.missing} if self.missing else {}
        return {"name": self.name, "scenario": self.scenario, **medians, **missing, "warnings": self.warnings}


def default_path(name: str) -> Path:
    """benchmarks/results/NAME.json of the source tree; NAME.json of the current folder where sextet is installed."""
    return (RESULTS if IN_SOURCE_TREE else Path.cwd()) / f"{name}.json"
