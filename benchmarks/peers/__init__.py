"""Peers: the same model and the same load on other servers.

    python -m benchmarks.peers install [NAME...]
    python -m benchmarks.peers list

`contest` is what `make bench-encoders` calls: one server at a time on the machine, started anew for each measurement,
and measured once it answers as the artifact's own pipeline does. It searches the best way of each peer in short
windows, and then measures the strongest in turn with our own server. A peer that fails has no rate, and the result
says why.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks import Say
from benchmarks.load.asker import HOST, Asker
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load, measure
from benchmarks.load.tally import Tally
from benchmarks.peers.agreement import Agreement
from benchmarks.peers.catalog import OPENVINO, PEERS, RAY_SERVE_TRANSFORMERS
from benchmarks.peers.peer import Peer, PeerError, Top, Way
from benchmarks.peers.process import running

__all__ = ["OPENVINO", "PEERS", "RAY_SERVE_TRANSFORMERS", "SEXTET", "Peer", "PeerThroughput", "Workload", "contest"]

SEXTET = "Sextet"


@dataclass(frozen=True)
class Workload:
    """What a peer serves, and the closed loop that it gets: `trial_s` for each way that is tried, `duration_s` for each
    of the `repetitions` of the best one.
    """

    name: str
    checkpoint: Path
    artifact: Path
    optimum: Path
    openvino: Path
    texts: Sequence[str]
    concurrency: int
    trial_s: float
    duration_s: float
    warm_up_s: float
    repetitions: int


@dataclass(frozen=True)
class PeerThroughput:
    """Inputs per second of each repetition, or of the only trial; none where the peer is `missing`, which says why.

    `batch_size` says which of its ways was best; `points` hold latencies beside the rates.
    """

    peer: str
    workload: str
    inputs_per_s: Sequence[float] = ()
    missing: str | None = None
    batch_size: str | None = None
    points: Sequence[dict[str, float]] = ()


def every(tried: Sequence[PeerThroughput]) -> set[str]:
    """The names of all."""
    return {one.peer for one in tried}


def contest(
    workload: Workload,
    ours: Callable[[], Tally],
    say: Say,
    peers: Sequence[Peer] = PEERS,
    finalists: Callable[[Sequence[PeerThroughput]], set[str]] = every,
) -> list[PeerThroughput]:
    """Our entry, and one of each peer. `ours` serves and measures our own server once.

    `finalists` names, of all that were tried, the peers to measure in every repetition.
    """
    agreement = Agreement(workload.artifact, workload.texts)
    best = {peer.name: _best_way(peer, workload, agreement, say) for peer in peers}
    named = finalists([entry for entry, _ in best.values() if entry.inputs_per_s])
    repeated: dict[str, list[Tally]] = {name: [] for name in (SEXTET, *named)}
    failed: dict[str, str] = {}
    for _ in range(workload.repetitions):
        repeated[SEXTET].append(ours())
        for peer in peers:
            way = best[peer.name][1]
            if way is None or peer.name not in named or peer.name in failed:
                continue
            try:
                repeated[peer.name].append(_measured(peer, way, workload, agreement, workload.duration_s))
            except PeerError as error:
                failed[peer.name] = str(error)
        rates = {name: tallies[-1].per_s["inputs"] for name, tallies in repeated.items() if tallies}
        say(f"{workload.name}: " + ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()) + " inputs/s")
    entries = [_entry(PeerThroughput(SEXTET, workload.name), repeated[SEXTET])]
    for name, (entry, _) in best.items():
        if name in failed:
            entries.append(PeerThroughput(name, workload.name, missing=failed[name]))
        else:
            entries.append(_entry(entry, repeated[name]) if name in named else entry)
    return entries


def _best_way(peer: Peer, workload: Workload, agreement: Agreement, say: Say) -> tuple[PeerThroughput, Way | None]:
    """Its fastest way in one short window each."""
    tried: list[tuple[PeerThroughput, Way | None]] = []
    try:
        for way in peer.ways:
            tally = _measured(peer, way, workload, agreement, workload.trial_s)
            say(f"{workload.name}, {peer.name}, batches of {way}: {tally.per_s['inputs']:.1f} inputs/s")
            tried.append((_entry(PeerThroughput(peer.name, workload.name, batch_size=str(way)), [tally]), way))
    except PeerError as error:
        say(f"{workload.name}, {peer.name}: {error}")
        return PeerThroughput(peer.name, workload.name, missing=str(error)), None
    return max(tried, key=lambda one: median(one[0].inputs_per_s))


def _entry(entry: PeerThroughput, tallies: Sequence[Tally]) -> PeerThroughput:
    points = [{"per_s": one.per_s["inputs"], "p50_ms": one.latency.percentile_ms(50)} for one in tallies]
    return replace(entry, inputs_per_s=[one["per_s"] for one in points], points=points)


def _measured(peer: Peer, way: Way, workload: Workload, agreement: Agreement, duration_s: float) -> Tally:
    """Start, check and measure a peer once; raises PeerError, also where requests fail: it then had less to do."""
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

    with running(peer, model, way, answers) as port:
        load = Load(
            HOST,
            port,
            [Call(request_bytes(HOST, peer.path, bodies(text))) for text in workload.texts],
            duration_s=duration_s,
            warm_up_s=workload.warm_up_s,
            concurrency=workload.concurrency,
        )
        tally = measure(load)
    failed = {status: count for status, count in tally.statuses.items() if status != "200"}
    if failed or not tally.requests:
        reasons = ", ".join(f"{count} x {status}" for status, count in failed.items())
        raise PeerError(f"{sum(failed.values())} of {tally.requests} requests failed ({reasons})")
    return tally
