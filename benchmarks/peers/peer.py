"""Peer: another server of the same model, written as its own documentation shows.

A peer is a script in services/, run by the Python of the peer's own environment under .peers/. It reads what to serve
and where from PEER_TASK, PEER_MODEL (a folder), PEER_PORT and PEER_BATCH_SIZE, and imports nothing of this project.
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
SAME_GRAPH = 0.1  # the same ONNX file on the same engine: a score near 1 is rounded
SAME_WEIGHTS = 0.6  # fp32 against int8 of the same weights: up to 0.54 where a score is within 1e-5 of 1

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

    @property
    def environment(self) -> Path:
        return ENVIRONMENTS / (self.installed_as or self.name)

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"{self.installed_as or self.name}.txt"

    @property
    def installation(self) -> Path:
        """Written when an installation ended: empty, or why it failed."""
        return self.environment / "installation.txt"

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.needs else self.environment / "bin" / "python"

    def missing(self) -> str | None:
        """Why it cannot be started here; None where it can."""
        if self.needs:
            absent = [module for module in self.needs if find_spec(module) is None]
            return f"not installed: {', '.join(absent)}" if absent else None
        if not self.installation.exists():
            return f"not installed: python -m benchmarks.peers install {self.installed_as or self.name}"
        return self.installation.read_text(encoding="utf-8").strip() or None


@dataclass(frozen=True, kw_only=True)
class Peer(Installed):
    """How to start a service, how to ask it for one text, and how to read its answer.

    `serves` says for people which model runs on which engine, and how requests become batches. `model` is the folder
    that it loads: our exported int8 artifact, the int8 artifact that Optimum alone makes, or the checkpoint. A service
    whose scores differ by more than `log_odds_tolerance` from those of the artifact's own pipeline is refused. All
    `batch_sizes` are measured, and the fastest counts.
    """

    serves: str
    script: Path
    path: str
    body: Callable[[str], Any]
    top: Callable[[Any], Top]
    model: Literal["artifact", "optimum", "checkpoint"] = "artifact"
    log_odds_tolerance: float = SAME_GRAPH
    batch_sizes: tuple[int, ...] = (8,)
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further variables of its environment."""
