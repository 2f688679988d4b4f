"""Encoders: the figures of text classification, in one run.

    python -m benchmarks.suites.encoders                  what `make bench-encoders` does
    python -m benchmarks.suites.encoders --quick          windows of a second, to see whether it works

Models of well-known shapes are exported by `sextet export`, served by `sextet serve`, and measured in turn with the
same artifacts in this process. Writes benchmarks/results/encoders.json and docs/performance.md, and prints one line of
JSON last.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks import Say
from benchmarks.bare import BareRuntime
from benchmarks.figures.bars import ENCODER_FIGURES
from benchmarks.load.bodies import BodyConfig, calls
from benchmarks.load.generator import Load, measure
from benchmarks.load.texts import Lengths, counter, synthetic
from benchmarks.peers import PEERS, RAY_SERVE_TRANSFORMERS, PeerThroughput, Workload, peer_throughputs
from benchmarks.raw import RawPipeline
from benchmarks.scenarios import (
    OFFLINE_CONCURRENCY,
    Outcome,
    ScenarioConfig,
    offline,
    server,
    single_stream,
)
from benchmarks.suites.cluster import CLASSIFY, NOOP, Running, measured_cluster, running
from benchmarks.suites.shapes import BERT_BASE, DISTILBERT, MINILM_L6, Shape, ensure, ensure_optimum
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

    duration_s: float = 10.0
    alone_s: float = 3.0
    alone_repetitions: int = 3
    trial_s: float = 15.0
    warm_up_s: float = 3.0
    repetitions: int = 4
    trial_requests: int = 200
    searches: int = 2
    n_texts: int = 512


QUICK = Pace(
    duration_s=1.0,
    alone_s=1.0,
    alone_repetitions=1,
    trial_s=1.0,
    warm_up_s=0.5,
    trial_requests=10,
    repetitions=2,
    searches=1,
    n_texts=64,
)


@dataclass
class EncoderFindings(Findings):
    """Also `throughputs`: inputs per second of our own server, by workload."""

    throughputs: dict[str, list[float]] = field(default_factory=dict)

    def keep(self, measurement: str, outcome: Outcome) -> Outcome:
        """Keep the points of an outcome, labelled with the measurement."""
        self.points += [{**point, "label": f"{measurement}, {point['label']}"} for point in outcome.points]
        self.raw += [{"measurement": measurement, **run} for run in outcome.raw]
        return outcome


def run(options: Options, say: Say) -> EncoderFindings:
    """All figures."""
    pace, findings = options.pace(Pace(), QUICK), EncoderFindings()
    artifacts = {shape.name: ensure(shape, say) for shape in (BERT_BASE, DISTILBERT, MINILM_L6)}
    fixed = _texts(artifacts[BERT_BASE.name], "fixed:128", pace)
    mixed = _texts(artifacts[BERT_BASE.name], MIXED, pace)
    short = _texts(artifacts[MINILM_L6.name], "fixed:16", pace)
    with _served(BERT_BASE) as cluster:
        _measure_bert(findings, pace, cluster, fixed, mixed, say)
    with _served(DISTILBERT) as cluster:
        _measure_alone(findings, pace, cluster, say)
    with _served(MINILM_L6, noop=True) as cluster:
        _measure_minilm(findings, pace, cluster, short, mixed, say)
    if options.peers:
        workloads = [
            _workload("bert-base 128", BERT_BASE, fixed, pace, say),
            _workload("minilm-l6 mixed", MINILM_L6, mixed, pace, say),
        ]
        peers = peer_throughputs(workloads, say)
        findings.figures |= over_peers(findings.throughputs, peers)
        ours = [PeerThroughput("Sextet", name, rates) for name, rates in findings.throughputs.items()]
        findings.peers = [asdict(one) for one in (*ours, *peers)]
    findings.load = {"task": TASK.name, "threads": THREADS, "pace": vars(pace)}
    return findings


def over_peers(ours: dict[str, list[float]], peers: Sequence[PeerThroughput]) -> dict[str, list[float]]:
    """Our throughput over the best peer's, over the best of those that do not have our graph, and over the one that
    people write today; each the smaller of workloads. Without a value for a workload that no peer ran.
    """
    figures = {}
    for name, chosen in (
        ("over_best_peer", peers),
        ("over_best_peer_without_our_graph", [one for one in peers if one.peer in WITHOUT_OUR_GRAPH]),
        ("over_ray_serve_transformers", [one for one in peers if one.peer == RAY_SERVE_TRANSFORMERS]),
    ):
        ratios = [
            median(values) / max(theirs)
            for workload, values in ours.items()
            if (theirs := [median(one.inputs_per_s) for one in chosen if one.workload == workload and one.inputs_per_s])
        ]
        if len(ratios) == len(ours):
            figures[name] = [min(ratios)]
    return figures


def _measure_bert(
    findings: EncoderFindings, pace: Pace, cluster: Running, fixed: list[str], mixed: list[str], say: Say
) -> None:
    say("bert-base, 128 tokens, Offline")
    raw = RawPipeline(BERT_BASE.artifact, THREADS, fixed)
    config = _config(pace, cluster, fixed)
    outcome = findings.keep("bert-base 128 offline", offline(config, raw, say))
    findings.figures["offline_served_over_raw"] = outcome.figures["served_over_raw"]
    findings.throughputs["bert-base 128"] = outcome.figures["inputs_per_s"]
    bare = BareRuntime(BERT_BASE.artifact, fixed, THREADS).best(pace.duration_s)
    say(f"bare runtime: {bare.rows_per_s:.1f}/s, {bare.way}, batches of {bare.batch_size}")
    findings.raw.append({"measurement": "bert-base 128 bare", **bare.figures()})
    findings.figures["offline_served_over_bare"] = [
        served / bare.rows_per_s for served in outcome.figures["inputs_per_s"]
    ]

    service_ms = raw.run(1, pace.duration_s).batch_ms["p50"]
    say(f"bert-base, 128 tokens, Server, p99 within {SLO_SERVICE_TIMES} x {service_ms:.1f} ms")
    load = replace(config.load, slo_s=SLO_SERVICE_TIMES * service_ms / 1000, duration_s=pace.trial_s)
    batch_size = int(outcome.raw[-1]["batch_size"])
    searching = replace(
        config,
        load=load,
        repetitions=pace.searches,
        raw_batch_size=batch_size,
        trial_requests=pace.trial_requests,
    )
    outcome = findings.keep("bert-base 128 server", server(searching, raw, say))
    findings.figures["server_rate_over_raw"] = outcome.figures["rate_over_raw"]

    say(f"bert-base, {MIXED} tokens, Offline, against batches of {COUNT_BATCH} by arrival")
    raw = RawPipeline(BERT_BASE.artifact, THREADS, mixed)
    config = replace(_config(pace, cluster, mixed), raw_batch_size=COUNT_BATCH)
    outcome = findings.keep("bert-base mixed offline", offline(config, raw, say))
    findings.figures["mixed_over_count_batching"] = outcome.figures["served_over_raw"]


def _measure_alone(findings: EncoderFindings, pace: Pace, cluster: Running, say: Say) -> None:
    """One request at a time, in turn with the best that the bare runtime does with one row at a time."""
    for tokens in ALONE_TOKENS:
        texts = _texts(DISTILBERT.artifact, f"fixed:{tokens}", pace)
        bare, load = BareRuntime(DISTILBERT.artifact, texts, THREADS), _load(pace, cluster, texts)
        for _ in range(pace.alone_repetitions):
            best = bare.best_alone(pace.alone_s)
            served = findings.keep_tally(
                measure(replace(load, duration_s=pace.alone_s, warm_up_s=1.0)), f"distilbert {tokens} alone"
            ).per_s["requests"]
            findings.raw.append({"measurement": f"distilbert {tokens} bare", **best.figures()})
            findings.note(
                **{
                    f"single_stream_over_raw_{tokens}": served / best.rows_per_s,
                    f"single_stream_{tokens}_per_s": served,
                }
            )
            say(f"distilbert, {tokens} tokens, alone: {served:.0f}/s of {best.rows_per_s:.0f}/s ({best.way})")


def _measure_minilm(
    findings: EncoderFindings, pace: Pace, cluster: Running, short: list[str], mixed: list[str], say: Say
) -> None:
    say("minilm-l6, 16 tokens, one request at a time")
    raw = RawPipeline(MINILM_L6.artifact, THREADS, short)
    config = _config(pace, cluster, short)
    outcome = findings.keep("minilm-l6 16 single-stream", single_stream(config, raw, say))
    findings.figures["added_p50_ms"] = outcome.figures["added_p50_ms"]

    say(f"minilm-l6, 16 tokens, c={NOOP_CONCURRENCY}, against a replica that does nothing")
    ratios = findings.figures.setdefault("small_over_noop", [])
    for _ in range(pace.repetitions):
        noop = measure(replace(_load(pace, cluster, short, path=f"/{NOOP}"), concurrency=NOOP_CONCURRENCY))
        small = replace(config, repetitions=1, concurrencies=(NOOP_CONCURRENCY,))
        outcome = findings.keep("minilm-l6 16 offline", offline(small, None, say))
        served_per_s = outcome.points[0]["requests_per_s"]
        ratios.append(served_per_s / noop.per_s["requests"])
        bare = BareRuntime(MINILM_L6.artifact, short, THREADS).best(pace.duration_s)
        limit_per_s = THREADS / (bare.row_cpu_s + THREADS / noop.per_s["requests"])
        findings.note(small_over_limit=served_per_s / limit_per_s)

    say(f"minilm-l6, {MIXED} tokens, Offline")
    outcome = findings.keep("minilm-l6 mixed offline", offline(_config(pace, cluster, mixed), None, say))
    findings.throughputs["minilm-l6 mixed"] = outcome.figures["inputs_per_s"]


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
        texts=texts,
        concurrency=OFFLINE_CONCURRENCY,
        duration_s=pace.duration_s,
        warm_up_s=pace.warm_up_s,
        repetitions=2,
    )


if __name__ == "__main__":
    main("encoders", "The figures of encoders, against the same artifacts in-process.", run, ENCODER_FIGURES)
