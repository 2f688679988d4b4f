"""Peer: another server of the same model, written as its own documentation shows.

A peer is a script in services/, run by the Python of the peer's own environment under .peers/. It reads what to serve
and where from PEER_TASK, PEER_MODEL (a folder), PEER_PORT, PEER_BATCH_SIZE and PEER_WORKERS, and imports nothing of
this project.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from benchmarks.figures.result import ROOT
from pipelines.errors import SextetError

ENVIRONMENTS = ROOT / ".peers"
REQUIREMENTS = Path(__file__).parent
SERVICES = Path(__file__).parent / "services"
FAILED = "cannot be installed: "
SAME_GRAPH = 0.1  # the same ONNX file on the same engine: a score near 1 is rounded
SAME_WEIGHTS = 0.6  # fp32 against int8 of the same weights: up to 0.54 where a score is within 1e-5 of 1
OTHER_QUANTIZATION = 2.0
"""Activations in int8 as well, on random weights, whose log-odds are within 12: another row differs by more."""

Top = tuple[str, float]
"""The most likely label and its score."""


class PeerError(SextetError):
    """A peer cannot be measured; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A program with a Python environment of its own, or with the project's, which then has to have what it `needs`."""

    name: str
    needs: tuple[str, ...] = ()
    """Modules of the project's own environment; a peer that names none has an environment of its own."""
    installed_as: str | None = None
    """The peer whose environment it shares."""
    building: Mapping[str, str] = field(default_factory=dict)
    """Further variables of the installation, for packages that come as source."""

    @property
    def environment(self) -> Path:
        return ENVIRONMENTS / (self.installed_as or self.name)

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"{self.installed_as or self.name}.txt"

    @property
    def installation(self) -> Path:
        """Written when an installation ended: the requirements that it installed, or why it failed."""
        return self.environment / "installation.txt"

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.needs else self.environment / "bin" / "python"

    def missing(self) -> str | None:
        """Why it cannot be started here; None where it can."""
        if self.needs:
            absent = [module for module in self.needs if find_spec(module) is None]
            return f"not installed: {', '.join(absent)}" if absent else None
        install = f"python -m benchmarks.peers install {self.installed_as or self.name}"
        if not self.installation.exists():
            return f"not installed: {install}"
        ended = self.installation.read_text(encoding="utf-8")
        if ended.startswith(FAILED):
            return ended.strip()
        asked = self.requirements.read_text(encoding="utf-8")
        return None if ended == asked else f"other versions are there: {install}"


@dataclass(frozen=True)
class Way:
    """How a peer uses two cores: batches of at most `batch_size`, in so many `workers` that share the threads."""

    batch_size: int
    workers: int = 1

    def __str__(self) -> str:
        return f"{self.batch_size}" if self.workers == 1 else f"{self.workers} x {self.batch_size}"


@dataclass(frozen=True, kw_only=True)
class Service(Installed):
    """A script of services/ that answers on PEER_PORT; `serves` says for people which model runs on which engine."""

    serves: str
    script: Path
    path: str


@dataclass(frozen=True, kw_only=True)
class Peer(Service):
    """How to start a service, how to ask it for one text, and how to read its answer.

    `serves` says for people which model runs on which engine, and how requests become batches. `model` is the folder
    that it loads: our exported int8 artifact, the int8 artifact that Optimum or OpenVINO alone makes, or the
    checkpoint. A service whose scores differ by more than `log_odds_tolerance` from those of the artifact's own
    pipeline is refused. All `ways` are measured, and the fastest counts.
    """

    body: Callable[[str], Any]
    top: Callable[[Any], Top]
    model: Literal["artifact", "optimum", "openvino", "checkpoint"] = "artifact"
    log_odds_tolerance: float = SAME_GRAPH
    ways: tuple["Way", ...] = (Way(8),)
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further variables of its environment."""
