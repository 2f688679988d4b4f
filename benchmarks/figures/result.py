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

from benchmarks.figures.report import RESULTS
from pipelines.errors import ConfigurationError

PACKAGES = ("onnxruntime", "ray", "tokenizers", "numpy")


def describe() -> dict[str, str]:
    """Processor, cores, memory, kernel, versions and commit, each as text."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "system": f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "load_average": f"{os.getloadavg()[0]:.1f} processes ran on average in the minute before this was written",
    }


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a machine that only sends the load
        return "absent"


def _git(*arguments: str) -> str:
    finished = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return finished.stdout.strip()


SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Result:
    """`figures` hold one value per repetition; `points` every measured window; `load` what was sent.

    `peers` hold the inputs per second of every server on every workload, ours among them.
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
        """Name and medians, for the one line that programs read."""
        medians = {name: statistics.median(values) for name, values in self.figures.items()}
        return {"name": self.name, "scenario": self.scenario, **medians, "warnings": self.warnings}


def default_path(name: str) -> Path:
    """benchmarks/results/NAME.json of the repository."""
    return RESULTS / f"{name}.json"
