"""Encoders: the figures of text classification, in one run.

    python -m benchmarks.suites.encoders                  what `make bench-encoders` does
    python -m benchmarks.suites.encoders --quick          windows of a second, to see whether it works
    python -m benchmarks.suites.encoders --only alone     the parts of these names: minutes, where the machine is shared

Models of well-known shapes are exported by `sextet export`, served by `sextet serve`, and measured in turn with the
same artifacts in this process. Writes benchmarks/results/encoders.json and docs/performance.md, and prints one line of
JSON last.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import Say
from benchmarks.bare import BareRun, BareRuntime
from benchmarks.figures.bars import BARS_ALONE, ENCODER_FIGURES
from benchmarks.load.bodies import BodyConfig, calls
from benchmarks.load.generator import Load, measure
from benchmarks.load.tally import Tally
from benchmarks.load.texts import Lengths, counter, synthetic
from benchmarks.peers import OPENVINO, PEERS, RAY_SERVE_TRANSFORMERS, SEXTET, PeerThroughput, Workload, contest
from benchmarks.peers.installation import ensure as ensure_installed
from benchmarks.raw import RawPipeline
from benchmarks.scenarios import OFFLINE_CONCURRENCY, Outcome, ScenarioConfig, offline, server, single_stream
from benchmarks.suites.calibration import calibration_survives
from benchmarks.suites.cluster import CLASSIFY, NOOP, Running, measured_cluster, running
from benchmarks.suites.shapes import (
    BERT_BASE,
    DISTILBERT,
    MINILM_L6,
    Shape,
    ensure,
    ensure_openvino,
    ensure_optimum,
)
from benchmarks.suites.suite import Findings, Options, Repeated, main
from pipelines.runtime.artifact import ModelArtifact

TASK = CLASSIFY
MIXED = "lognormal:24,200"
SLO_SERVICE_TIMES = 8  # the objective of Server: so many times what one request takes alone
COUNT_BATCH = 8  # a usual size of servers that batch by count
NOOP_CONCURRENCY = 32
THREADS = 2
ALONE_TOKENS = (8, 16, 32, 64, 128, 256, 512)
WITHOUT_OUR_GRAPH = {peer.name for peer in PEERS if peer.model != "artifact"}


@dataclass(frozen=True)
class Pace(Repeated):
    """How long and how often. A trial of Server needs more requests, because its figure is a p99."""

    duration_s: float = 8.0
    alone_s: float = 2.0
    alone_repetitions: int = 3
    search_s: float = 6.0
    trial_s: float = 12.0
    warm_up_s: float = 3.0
    repetitions: int = 3
    trial_requests: int = 200
    searches: int = 2
    peer_trial_s: float = 4.0
    n_texts: int = 512


QUICK = Pace(
    duration_s=1.0,
    alone_s=0.5,
    alone_repetitions=1,
    search_s=0.5,
    trial_s=1.0,
    warm_up_s=0.5,
    trial_requests=10,
    repetitions=1,
    searches=1,
    peer_trial_s=0.5,
    n_texts=64,
)


@dataclass
class EncoderFindings(Findings):
    """Findings of scenarios as well."""

    def keep(self, measurement: str, outcome: Outcome) -> Outcome:
        """Keep the points of an outcome, labelled with the measurement."""
        self.points += [{**point, "label": f"{measurement}, {point['label']}"} for point in outcome.points]
        self.raw += [{"measurement": measurement, **run} for run in outcome.raw]
        return outcome

    def keep_bare(self, measurement: str, run: BareRun) -> BareRun:
        """Keep what the bare runtime did."""
        self.raw.append({"measurement": f"{measurement} bare", **run.figures()})
        return run


BERT, ALONE, SMALL, CALIBRATION, OTHERS = PARTS = ("bert", "alone", "small", "calibration", "peers")


def run(options: Options, say: Say) -> EncoderFindings:
    """The figures of the parts that `options` choose."""
    pace, findings, parts = options.pace(Pace(), QUICK), EncoderFindings(), options.chosen(PARTS)
    compared = options.peers and OTHERS in parts
    if compared:
        ensure_installed(PEERS, say)
    artifacts = {shape.name: ensure(shape, say) for shape in (BERT_BASE, DISTILBERT, MINILM_L6)}
    fixed = _texts(artifacts[BERT_BASE.name], "fixed:128", pace)
    mixed = _texts(artifacts[BERT_BASE.name], MIXED, pace)
    short = _texts(artifacts[MINILM_L6.name], "fixed:16", pace)
    if BERT in parts:
        with _served(BERT_BASE) as cluster:
            _measure_bert(findings, pace, cluster, fixed, mixed, say)
    if ALONE in parts:
        with _served(DISTILBERT) as cluster:
            _measure_alone(findings, pace, cluster, say)
    if SMALL in parts:
        with _served(MINILM_L6, noop=True) as cluster:
            _measure_minilm(findings, pace, cluster, short, say)
    if CALIBRATION in parts:
        _measure_calibration(findings, pace, say)
    if compared:
        entries: list[PeerThroughput] = []
        for name, shape, texts in (("bert-base 128", BERT_BASE, fixed), ("minilm-l6 mixed", MINILM_L6, mixed)):
            workload = _workload(name, shape, texts, pace, say)
            entries += contest(workload, partial(_served_once, workload, shape), say, PEERS, strongest)
        findings.figures |= over_peers(entries)
        findings.peers = [asdict(one) for one in entries]
    findings.load = {"task": TASK.name, "threads": THREADS, "pace": vars(pace)}
    return findings


FIGURES_OVER_PEERS = {
    "over_best_peer_encoders": {peer.name for peer in PEERS},
    "over_openvino_encoders": {OPENVINO},
    "over_best_peer_without_our_graph": WITHOUT_OUR_GRAPH,
    "over_ray_serve_transformers": {RAY_SERVE_TRANSFORMERS},
}
"""The peers whose best is compared in each figure."""


def strongest(tried: Sequence[PeerThroughput]) -> set[str]:
    """The best peer of each figure of FIGURES_OVER_PEERS, which are measured in turn with our server."""
    chosen = ([one for one in tried if one.peer in names] for names in FIGURES_OVER_PEERS.values())
    return {max(among, key=lambda one: median(one.inputs_per_s)).peer for among in chosen if among}


def over_peers(entries: Sequence[PeerThroughput]) -> dict[str, list[float]]:
    """Our throughput over that of the best peer of each figure, repetition by repetition: the smaller of workloads.

    A figure has no value where one of its peers has no rate: what is missing may be the best.
    """
    figures = {}
    workloads = dict.fromkeys(one.workload for one in entries)
    for name, peers in FIGURES_OVER_PEERS.items():
        ratios: list[list[float]] = []
        for workload in workloads:
            of = {one.peer: one.inputs_per_s for one in entries if one.workload == workload}
            rates = [of.get(peer, ()) for peer in peers]
            if not all(rates):
                break
            best = max(rates, key=median)
            ratios.append([ours / theirs for ours, theirs in zip(of[SEXTET], best, strict=False)])
        else:
            figures[name] = [min(repetition) for repetition in zip(*ratios, strict=False)]
    return figures


def _served_once(workload: Workload, shape: Shape) -> Tally:
    """Our own server, started for one measurement as each peer is."""
    with _served(shape) as cluster:
        made = calls(f"127.0.0.1:{cluster.port}", "", TASK, workload.texts, 1, BodyConfig())
        load = Load("127.0.0.1", cluster.port, made, duration_s=workload.duration_s, warm_up_s=workload.warm_up_s)
        return measure(replace(load, concurrency=workload.concurrency))


def _measure_bert(
    findings: EncoderFindings, pace: Pace, cluster: Running, fixed: list[str], mixed: list[str], say: Say
) -> None:
    name = "bert-base 128"
    bare = BareRuntime(BERT_BASE.artifact, fixed, THREADS)
    best, alone = bare.best(pace.search_s), bare.best_alone(pace.search_s)
    shown = f"{best.rows_per_s:.1f}/s, {best.way}, batches of {best.batch_size}; alone {alone.rows_per_s:.1f}/s"
    say(f"{name}: bare {shown}")
    config = replace(_config(pace, cluster, fixed), repetitions=1)
    for _ in range(pace.repetitions):
        raw = findings.keep_bare(f"{name} offline", bare.run(best.way, best.batch_size, pace.duration_s))
        served = findings.keep(f"{name} offline", offline(config, None, say)).figures["inputs_per_s"][0]
        findings.note(offline_served_over_raw=served / raw.rows_per_s)

    slo_s = SLO_SERVICE_TIMES / alone.rows_per_s
    say(f"{name}, Server, p99 within {SLO_SERVICE_TIMES} x {1000 / alone.rows_per_s:.1f} ms")
    load = replace(config.load, slo_s=slo_s, duration_s=pace.trial_s)
    searching = replace(config, load=load, trial_requests=pace.trial_requests)
    for _ in range(pace.searches):
        rate = findings.keep(f"{name} server", server(searching, None, say)).figures["rate_per_s"][0]
        raw = findings.keep_bare(f"{name} server", bare.run(best.way, best.batch_size, pace.duration_s))
        findings.note(server_rate_over_raw=rate / raw.rows_per_s)

    say(f"bert-base, {MIXED} tokens, Offline, against batches of {COUNT_BATCH} by arrival")
    by_count = RawPipeline(BERT_BASE.artifact, THREADS, mixed)
    config = replace(_config(pace, cluster, mixed), raw_batch_size=COUNT_BATCH)
    outcome = findings.keep("bert-base mixed offline", offline(config, by_count, say))
    findings.figures["mixed_over_count_batching"] = outcome.figures["served_over_raw"]


def _measure_alone(findings: EncoderFindings, pace: Pace, cluster: Running, say: Say) -> None:
    """One request at a time, in turn with the best that the bare runtime does with one row at a time."""
    for tokens in ALONE_TOKENS:
        texts = _texts(DISTILBERT.artifact, f"fixed:{tokens}", pace)
        bare, load = BareRuntime(DISTILBERT.artifact, texts, THREADS), _load(pace, cluster, texts)
        best = bare.best_alone(pace.alone_s)
        for _ in range(pace.alone_repetitions):
            raw = findings.keep_bare(f"distilbert {tokens}", bare.run(best.way, 1, pace.alone_s))
            served = findings.keep_tally(
                measure(replace(load, concurrency=1, duration_s=pace.alone_s, warm_up_s=1.0)),
                f"distilbert {tokens} alone",
            ).per_s["requests"]
            findings.note(
                **{
                    f"single_stream_over_raw_{tokens}": served / raw.rows_per_s,
                    f"single_stream_{tokens}_per_s": served,
                }
            )
            say(f"distilbert, {tokens} tokens, alone: {served:.0f}/s of {raw.rows_per_s:.0f}/s ({raw.way})")


def _measure_calibration(findings: EncoderFindings, pace: Pace, say: Say) -> None:
    """One request at a time of each length that has a bar, after a noisy start and after a quiet one."""
    texts = [_texts(DISTILBERT.artifact, f"fixed:{tokens}", pace) for tokens in BARS_ALONE]

    def rates(cluster: Running) -> list[float]:
        loads = (replace(_load(pace, cluster, one), duration_s=pace.alone_s, warm_up_s=1.0) for one in texts)
        return [measure(replace(load, concurrency=1)).per_s["requests"] for load in loads]

    say("distilbert, a start beside busy processes")
    findings.note(calibration_survives=calibration_survives(lambda: _served(DISTILBERT), rates, say))


def _measure_minilm(findings: EncoderFindings, pace: Pace, cluster: Running, short: list[str], say: Say) -> None:
    name = "minilm-l6 16"
    say(f"{name}, one request at a time")
    config = _config(pace, cluster, short)
    outcome = findings.keep(
        f"{name} single-stream",
        single_stream(replace(config, repetitions=2), RawPipeline(MINILM_L6.artifact, THREADS, short), say),
    )
    findings.figures["added_p50_ms"] = outcome.figures["added_p50_ms"]

    say(f"{name}, c={NOOP_CONCURRENCY}, against a replica that does nothing")
    bare = BareRuntime(MINILM_L6.artifact, short, THREADS)
    best = bare.best(pace.search_s)
    small = replace(config, repetitions=1, concurrencies=(NOOP_CONCURRENCY,))
    for _ in range(pace.repetitions):
        noop = measure(replace(_load(pace, cluster, short, path=f"/{NOOP}"), concurrency=NOOP_CONCURRENCY))
        served_per_s = findings.keep(f"{name} offline", offline(small, None, say)).points[0]["requests_per_s"]
        row = findings.keep_bare(name, bare.run(best.way, best.batch_size, pace.duration_s))
        limit_per_s = THREADS / (row.row_cpu_s + THREADS / noop.per_s["requests"])
        findings.note(
            small_over_noop=served_per_s / noop.per_s["requests"], small_over_limit=served_per_s / limit_per_s
        )


@contextmanager
def _served(shape: Shape, *, noop: bool = False) -> Iterator[Running]:
    with (
        tempfile.TemporaryDirectory(prefix="sextet-bench-") as folder,
        running(measured_cluster({TASK.name: shape.artifact}, THREADS, noop=noop), Path(folder)) as cluster,
    ):
        yield cluster


def _texts(artifact: Path, lengths: str, pace: Pace) -> list[str]:
    opened = ModelArtifact.open(artifact)
    return synthetic(Lengths.parse(lengths), pace.n_texts, 0, counter(opened), opened.manifest.tokenizer.max_length)


def _config(pace: Pace, cluster: Running, texts: list[str]) -> ScenarioConfig:
    return ScenarioConfig(_load(pace, cluster, texts), repetitions=pace.repetitions, processes=1, task=TASK.name)


def _load(pace: Pace, cluster: Running, texts: list[str], path: str | None = None) -> Load:
    made = calls(f"127.0.0.1:{cluster.port}", "", TASK, texts, 1, BodyConfig())
    if path is not None:
        ours, theirs = f"/{TASK.name}".encode(), path.encode()
        made = [replace(call, request=call.request.replace(ours, theirs, 1)) for call in made]
    return Load("127.0.0.1", cluster.port, made, duration_s=pace.duration_s, warm_up_s=pace.warm_up_s)


def _workload(name: str, shape: Shape, texts: list[str], pace: Pace, say: Say) -> Workload:
    return Workload(
        name=name,
        checkpoint=shape.checkpoint,
        artifact=shape.artifact,
        optimum=ensure_optimum(shape, say),
        openvino=ensure_openvino(shape, next(one.python for one in PEERS if one.name == OPENVINO), texts, say),
        texts=texts,
        concurrency=OFFLINE_CONCURRENCY,
        trial_s=pace.peer_trial_s,
        duration_s=pace.duration_s,
        warm_up_s=pace.warm_up_s,
        repetitions=pace.repetitions,
    )


if __name__ == "__main__":
    main("encoders", "The figures of encoders, against the same artifacts in-process.", run, ENCODER_FIGURES, PARTS)
