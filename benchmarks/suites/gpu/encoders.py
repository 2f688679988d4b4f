"""Encoders on the GPU: rows of 128 tokens per second, bare, served, and of PyTorch behind a small server."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import Say
from benchmarks.bare import BareRuntime
from benchmarks.figures.bars import ROWS
from benchmarks.load.asker import HOST, Asker
from benchmarks.load.bodies import BodyConfig, calls
from benchmarks.load.generator import Load, measure
from benchmarks.load.texts import Lengths, counter, synthetic
from benchmarks.peers import PeerThroughput
from benchmarks.peers.agreement import Agreement
from benchmarks.peers.catalog import PYTORCH, PYTORCH_COMPILED
from benchmarks.peers.peer import Peer, PeerError, Top
from benchmarks.peers.process import running as running_peer
from benchmarks.scenarios import Outcome, ScenarioConfig, offline, server
from benchmarks.suites.cluster import CLASSIFY, running
from benchmarks.suites.gpu.phase import Journal, Setting
from pipelines.runtime.artifact import ModelArtifact

TASK = CLASSIFY
TOKENS = 128
CLIENTS, INPUTS_PER_REQUEST = 64, 32  # of Offline: 2,048 rows are inside the server at any time
SLO_S = 0.050  # of Server, where each request is one row
RESOLUTION = 0.08  # of the rate that Server searches
BARE, SERVED, RATE = "gpu_rows_s", "gpu_rows_s_served", "gpu_rate_s"


def run(setting: Setting, say: Say) -> None:
    """The bare runtime, PyTorch, the server; then PyTorch compiled, which takes longest to start. A phase that is cut
    off keeps the figures before that.
    """
    artifact, pace = setting.models.artifact(setting.models.encoder), setting.pace
    workload = f"{setting.models.encoder.name} {TOKENS}, {setting.models.precision}, {ROWS}"
    journal = Journal(setting.folder, "encoders", {"workload": workload, "replicas": setting.replicas})
    opened = ModelArtifact.open(artifact)
    texts = synthetic(
        Lengths.parse(f"fixed:{TOKENS}"), pace.n_texts, 0, counter(opened), opened.manifest.tokenizer.max_length
    )
    _measure_bare(setting, journal, artifact, texts, say)
    agreement = Agreement(artifact, texts, setting.device) if setting.peers else None
    fastest = 0.0
    if agreement:
        fastest = _measure_peer(setting, journal, PYTORCH, workload, agreement, texts, say)
    _measure_served(setting, journal, artifact, workload, texts, say)
    _compare(journal, fastest)
    if agreement and setting.device != "cpu":
        compiled = _measure_peer(setting, journal, PYTORCH_COMPILED, workload, agreement, texts, say)
        _compare(journal, max(fastest, compiled))


def _measure_bare(setting: Setting, journal: Journal, artifact: Path, texts: Sequence[str], say: Say) -> None:
    pace = setting.pace
    bare = BareRuntime(artifact, texts, device=setting.device, batch_sizes=pace.batch_sizes)
    best = bare.best(pace.search_s)
    for _ in range(pace.repetitions):
        measured = bare.run(best.way, best.batch_size, pace.window_s)
        say(f"bare, {measured.way}, batches of {measured.batch_size}: {measured.rows_per_s:.0f} rows/s")
        journal.keep("raw", measured.figures())
        journal.note(**{BARE: measured.rows_per_s})


def _measure_peer(
    setting: Setting,
    journal: Journal,
    peer: Peer,
    workload: str,
    agreement: Agreement,
    texts: Sequence[str],
    say: Say,
) -> float:
    """The peer's median; 0 where it cannot be measured."""
    entry = _peer_throughput(setting, peer, workload, agreement, texts, say)
    journal.keep("peers", entry)
    return median(entry.inputs_per_s or [0.0])


def _measure_served(
    setting: Setting, journal: Journal, artifact: Path, workload: str, texts: Sequence[str], say: Say
) -> None:
    pace, bare = setting.pace, median(journal.values(BARE))
    configuration = setting.cluster({TASK.name: artifact}, setting.replicas)
    with tempfile.TemporaryDirectory(prefix="sextet-gpu-") as folder, running(configuration, Path(folder)) as cluster:
        config = ScenarioConfig(
            _load(setting, cluster.port, texts, INPUTS_PER_REQUEST),
            concurrencies=(CLIENTS,),
            repetitions=pace.repetitions,
            task=TASK.name,
        )
        outcome = _keep(journal, "offline", offline(config, None, say))
        for rate in outcome.figures["inputs_per_s"]:
            journal.note(**{SERVED: rate, "gpu_served_over_raw": rate / bare})
        journal.keep("peers", PeerThroughput("Sextet", workload, outcome.figures["inputs_per_s"]))
        load = replace(_load(setting, cluster.port, texts, 1), slo_s=SLO_S, duration_s=pace.trial_s)
        searching = replace(config, load=load, repetitions=1, trial_requests=pace.trial_requests, resolution=RESOLUTION)
        outcome = _keep(journal, "server", server(searching, None, say))
        for rate in outcome.figures["rate_per_s"]:
            journal.note(**{RATE: rate, "gpu_server_rate_over_raw": rate / bare})


def _compare(journal: Journal, fastest: float) -> None:
    """Our throughput over that of the fastest peer so far; nothing without one."""
    if fastest:
        journal.compare(gpu_over_transformers=[rate / fastest for rate in journal.values(SERVED)])


def _keep(journal: Journal, measurement: str, outcome: Outcome) -> Outcome:
    journal.keep(
        "points", *({**point, "label": f"encoder {measurement}, {point['label']}"} for point in outcome.points)
    )
    return outcome


def _load(setting: Setting, port: int, texts: Sequence[str], inputs_per_request: int) -> Load:
    made = calls(f"{HOST}:{port}", "", TASK, texts, inputs_per_request, BodyConfig())
    return Load(HOST, port, made, duration_s=setting.pace.window_s, warm_up_s=setting.pace.warm_up_s)


def _peer_throughput(
    setting: Setting, peer: Peer, workload: str, agreement: Agreement, texts: Sequence[str], say: Say
) -> PeerThroughput:
    """Rows per second of a peer, which gets the requests of Offline."""
    peer = replace(peer, settings={**peer.settings, "PEER_DEVICE": setting.device})
    (way,) = peer.ways

    def answers(port: int) -> None:
        asker = Asker(port)

        def top(text: str) -> Top:
            body: Any = {"inputs": text}
            return peer.top(json.loads(asker.ask(peer.path, json.dumps(body).encode())))

        try:
            agreement.check(peer, top)
        finally:
            asker.close()

    try:
        if missing := peer.missing():
            raise PeerError(missing)
        with running_peer(peer, setting.models.encoder.checkpoint, way, answers) as port:
            load = replace(_load(setting, port, texts, INPUTS_PER_REQUEST), concurrency=CLIENTS)
            rates = [measure(load).per_s["inputs"] for _ in range(setting.pace.repetitions)]
    except PeerError as error:
        say(f"{peer.name}: {error}")
        return PeerThroughput(peer.name, workload, missing=str(error))
    say(f"{peer.name}: {', '.join(f'{rate:.0f}' for rate in rates)} rows/s")
    return PeerThroughput(peer.name, workload, rates, batch_size=str(way))
