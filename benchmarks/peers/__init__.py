"""Peers: the same model and the same load on other servers.

    python -m benchmarks.peers install [NAME...]
    python -m benchmarks.peers list

`peer_throughputs` is what `make bench-encoders` calls. For each peer and workload it starts the peer's service, waits
until it answers as the artifact's own pipeline does, sends it the closed loop that our own server got, and stops it.
A peer that cannot run here has no rate, and the result says why.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import Say
from benchmarks.load.asker import HOST, Asker
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load, measure
from benchmarks.peers.agreement import Agreement
from benchmarks.peers.catalog import PEERS, RAY_SERVE_TRANSFORMERS
from benchmarks.peers.peer import Peer, PeerError, Top
from benchmarks.peers.process import running

__all__ = ["PEERS", "RAY_SERVE_TRANSFORMERS", "Peer", "PeerThroughput", "Workload", "peer_throughputs"]


@dataclass(frozen=True)
class Workload:
    """What a peer serves, and the closed loop that it gets."""

    name: str
    checkpoint: Path
    artifact: Path
    optimum: Path
    texts: Sequence[str]
    concurrency: int
    duration_s: float
    warm_up_s: float
    repetitions: int


@dataclass(frozen=True)
class PeerThroughput:
    """Inputs per second of each repetition; none where the peer is `missing`, which says why.

    `batch_size` is the one of the peer's own that was best for the workload.
    """

    peer: str
    workload: str
    inputs_per_s: Sequence[float] = ()
    missing: str | None = None
    batch_size: int | None = None


def peer_throughputs(workloads: Sequence[Workload], say: Say, peers: Sequence[Peer] = PEERS) -> list[PeerThroughput]:
    """One entry for each peer and workload."""
    entries = []
    for workload in workloads:
        agreement = Agreement(workload.artifact, workload.texts)
        for peer in peers:
            tried = []
            try:
                for batch_size in peer.batch_sizes:
                    rates = _inputs_per_s(peer, batch_size, workload, agreement)
                    shown = ", ".join(f"{rate:.1f}" for rate in rates)
                    say(f"{workload.name}, {peer.name}, batches of {batch_size}: {shown} inputs/s")
                    tried.append(PeerThroughput(peer.name, workload.name, rates, batch_size=batch_size))
            except PeerError as error:
                say(f"{workload.name}, {peer.name}: {error}")
                tried.append(PeerThroughput(peer.name, workload.name, missing=str(error)))
            entries.append(max(tried, key=lambda entry: median(entry.inputs_per_s or [0.0])))
    return entries


def _inputs_per_s(peer: Peer, batch_size: int, workload: Workload, agreement: Agreement) -> list[float]:
    if missing := peer.missing():
        raise PeerError(missing)
    model: Path = getattr(workload, peer.model)

    def bodies(text: str) -> bytes:
        return json.dumps(peer.body(text)).encode()

    def answers(port: int) -> None:
        asker = Asker(port)

        def top(text: str) -> Top:
            return peer.top(json.loads(asker.ask(peer.path, bodies(text))))

        try:
            agreement.check(peer, top)
        finally:
            asker.close()

    with running(peer, model, batch_size, answers) as port:
        load = Load(
            HOST,
            port,
            [Call(request_bytes(HOST, peer.path, bodies(text))) for text in workload.texts],
            duration_s=workload.duration_s,
            warm_up_s=workload.warm_up_s,
            concurrency=workload.concurrency,
        )
        return [_measured(load) for _ in range(workload.repetitions)]


def _measured(load: Load) -> float:
    """Inputs per second; raises PeerError where requests failed, because the server then had less to do."""
    tally = measure(load)
    failed = {status: count for status, count in tally.statuses.items() if status != "200"}
    if failed or not tally.requests:
        reasons = ", ".join(f"{count} x {status}" for status, count in failed.items())
        raise PeerError(f"{sum(failed.values())} of {tally.requests} requests failed ({reasons})")
    return tally.per_s["inputs"]
