"""Service: what it costs to be seen, reached by other names and protocols, and split among models.

    python -m benchmarks.suites.service                  what `make bench-service` does, within fifteen minutes
    python -m benchmarks.suites.service --quick          one repetition with short windows: whether it works
    python -m benchmarks.suites.service --only observers    of the two parts, what needs no cluster; or --only cluster

In this process, before anything else runs:

    observed_request_us   CPU microseconds of the observers of a replica for one request of an encoder
    observed_stream_us    the same for a stream of 64 tokens
    sampled_request_us    the same for a request, with a log of 1% and traces of 1% to a collector

One cluster; what is compared is measured in turns on it, in each repetition the one, twice the other, and the one
again: a machine whose speed drifts favours neither.

    observed_over_bare    requests/s of the sentiment model, one text each, with metrics, a request log of 1% and traces
                          of 1% to a collector, over those of the same replica while nothing is observed
    root_over_direct      requests/s of a replica that does nothing at /v1/completions, which HAProxy rewrites, over the
                          task's own path
    grpc_over_http        inputs/s of lists of 32 short texts by tritonclient.grpc over those by tritonclient.http, with
                          binary tensors
    canary_lost           requests that were not answered with 200 while a file of shares changed 100 times
    canary_share_error    of 10,000 requests at 5%: by how many points the share of the other model was wrong

Writes benchmarks/results/service.json and docs/performance.md, and prints one line of JSON last.
"""

import asyncio
import json
import os
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import mean
from time import perf_counter, sleep
from typing import Any

from benchmarks import Say
from benchmarks.figures.bars import SERVICE_FIGURES
from benchmarks.load.asker import Asker
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load, measure
from benchmarks.load.texts import sentences
from benchmarks.observing import observing_us
from benchmarks.suites.cluster import CLASSIFY, TRANSLATE, WRITE, Running, measured_cluster, running
from benchmarks.suites.generation import artifact_of
from benchmarks.suites.suite import Findings, Options, Repeated, main
from benchmarks.switched import UNOBSERVED
from deployments.cluster.ray_environment import spare_port
from deployments.config import route_of
from deployments.ingress.config import GATEWAY
from pipelines.errors import SextetError

PARTS = OBSERVERS, CLUSTER = "observers", "cluster"
OBSERVED, BARE, OTHER = "observed", "bare", "other"
Ways = Mapping[str, tuple[str, Mapping[str, str]]]
"""The path of requests and the headers that they have, by a name."""
CLIENTS, LIST_CLIENTS, LIST_INPUTS = 32, 4, 32
LIST_TURNS = 2  # a list takes tens of milliseconds: a window holds few of them
SHARE, SHARES = 5, (0, 10, 100, 0)
TRACED_SHARE = 0.01
IN_FORCE_S = 2.0  # twice as long as a node may take to see a file


class ServiceError(SextetError):
    """A request of a measurement failed."""


@dataclass(frozen=True)
class Pace(Repeated):
    """How long and how often."""

    repetitions: int = 7
    window_s: float = 2.5
    changes: int = 100
    change_s: float = 0.4
    split_requests: int = 10_000


QUICK = Pace(repetitions=1, window_s=2.0, changes=8, split_requests=1000)


def run(options: Options, say: Say) -> Findings:
    """All figures; raises SextetError."""
    pace, findings = options.pace(Pace(), QUICK), Findings()
    model, parts = artifact_of(CLASSIFY, say), options.chosen(PARTS)
    with collector() as traces:
        if OBSERVERS in parts:
            for _ in range(pace.repetitions):
                findings.note(**asyncio.run(observing_us(model, TRACED_SHARE)))
        if CLUSTER in parts:
            _measure_cluster(findings, pace, model, say)
    findings.load = {
        "clients": CLIENTS,
        "lists": f"{LIST_CLIENTS} clients, {LIST_INPUTS} texts each",
        "spans_received": traces["requests"],
        "pace": vars(pace),
    }
    return findings


def _measure_cluster(findings: Findings, pace: Pace, model: Path, say: Say) -> None:
    grpc_port = spare_port()
    with tempfile.TemporaryDirectory(prefix="sextet-bench-") as name:
        folder = Path(name)
        shares = folder / "shares"
        shares.write_text("", encoding="ascii")
        with running(configuration(model, grpc_port), folder) as cluster:
            for repetition in range(pace.repetitions):
                say(f"repetition {repetition + 1} of {pace.repetitions}")
                _measure_observed(findings, pace, cluster, repetition)
                _measure_root(findings, pace, cluster, repetition)
                _measure_grpc(findings, pace, cluster, grpc_port, repetition)
            _measure_shares(findings, pace, cluster, shares)
            _measure_changes(findings, pace, cluster, shares)


def configuration(model: Path, grpc_port: int) -> dict[str, Any]:
    """The sentiment model, observed at will, and replicas that do nothing: alone at one task, two at another."""
    cluster = measured_cluster({CLASSIFY.name: model}, gateway=True)
    default, gateway = cluster["applications"]
    gateway["deployments"][0]["user_config"] = {"ingress": {"grpc_port": grpc_port, "traffic": "shares"}}
    (deployment,) = default["deployments"]
    log = {"request_log": {"sample": TRACED_SHARE}}
    cluster["applications"].append(
        {
            "name": f"{CLASSIFY.name}.{OBSERVED}",
            "route_prefix": f"/{CLASSIFY.name}/{OBSERVED}",
            "import_path": "benchmarks.switched:build",
            "args": {"task": CLASSIFY.name, "model": OBSERVED},
            "deployments": [deployment | {"user_config": deployment["user_config"] | log}],
        }
    )
    written, translated = '[{"generated_text": "noop"}]', '[{"translation_text": "%s"}]'
    cluster["applications"] += [
        _named(WRITE.name, written),
        _named(TRANSLATE.name, translated % TRANSLATE.name),
        _named(f"{TRANSLATE.name}.{OTHER}", translated % OTHER),
    ]
    assert gateway["name"] == GATEWAY
    return cluster


def _named(application: str, answer: str) -> dict[str, Any]:
    return {
        "name": application,
        "route_prefix": route_of(application),
        "import_path": "benchmarks.noop:named",
        "args": {"answer": answer},
        "deployments": [
            {
                "name": "named",
                "max_ongoing_requests": 1000,
                "ray_actor_options": {"num_cpus": 0.1},
                "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
            }
        ],
    }


@contextmanager
def collector() -> Iterator[Counter[str]]:
    """A collector of traces that counts what it gets; the clusters that start in the block send 1% of theirs to it."""
    received: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            received["requests"] += 1
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(TRACED_SHARE),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield received
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        server.shutdown()
        server.server_close()


# --- requests a second of two paths ---


def _measure_observed(findings: Findings, pace: Pace, cluster: Running, repetition: int) -> None:
    bodies = [json.dumps({"inputs": one}).encode() for one in sentences(256, repetition)]
    path = f"/{CLASSIFY.name}/{OBSERVED}"
    ways: Ways = {OBSERVED: (path, {}), BARE: (path, {UNOBSERVED: "1"})}
    per_s = _in_turns(findings, pace, cluster, ways, bodies, repetition)
    findings.note(
        observed_over_bare=per_s[OBSERVED] / per_s[BARE], observed_per_s=per_s[OBSERVED], bare_per_s=per_s[BARE]
    )


def _measure_root(findings: Findings, pace: Pace, cluster: Running, repetition: int) -> None:
    below = "/v1/completions"
    ways: Ways = {"root": (below, {}), "direct": (f"/{WRITE.name}{below}", {})}
    per_s = _in_turns(findings, pace, cluster, ways, [b'{"prompt":"a"}'], repetition)
    findings.note(root_over_direct=per_s["root"] / per_s["direct"], direct_per_s=per_s["direct"])


def _in_turns(
    findings: Findings, pace: Pace, cluster: Running, ways: Ways, bodies: list[bytes], repetition: int
) -> dict[str, float]:
    """Requests a second of each way."""
    per_s: defaultdict[str, list[float]] = defaultdict(list)
    for name in _there_and_back(ways, repetition):
        path, headers = ways[name]
        calls = [Call(request_bytes("127.0.0.1", path, body, headers)) for body in bodies]
        load = Load("127.0.0.1", cluster.port, calls, pace.window_s, concurrency=CLIENTS)
        tally = findings.keep_tally(measure(load), name)
        if set(tally.statuses) != {"200"}:
            raise ServiceError(f"{path}: {dict(tally.statuses)}")
        per_s[name].append(tally.per_s["requests"])
    return {name: mean(rates) for name, rates in per_s.items()}


def _there_and_back(names: Iterable[str], repetition: int) -> list[str]:
    """The order of two measurements: one, the other, the other, one."""
    there = list(names)[:: 1 if repetition % 2 else -1]
    return [*there, *reversed(there)]


# --- lists over gRPC and HTTP ---


def _measure_grpc(findings: Findings, pace: Pace, cluster: Running, grpc_port: int, repetition: int) -> None:
    """Each client in a thread with a connection of its own."""
    import tritonclient.grpc as of_grpc
    import tritonclient.http as of_http

    ask = {"grpc": _asking(of_grpc, grpc_port), "http": _asking(of_http, cluster.port)}
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for name in LIST_TURNS * _there_and_back(ask, repetition):
        ends_at = perf_counter() + pace.window_s
        with ThreadPoolExecutor(LIST_CLIENTS) as pool:
            rates[name].append(sum(pool.map(ask[name], [ends_at] * LIST_CLIENTS, range(LIST_CLIENTS))))
        findings.raw.append({"measurement": f"lists over {name}", "inputs_per_s": rates[name][-1]})
    per_s = {name: mean(each) for name, each in rates.items()}
    findings.note(
        grpc_over_http=per_s["grpc"] / per_s["http"],
        grpc_inputs_per_s=per_s["grpc"],
        http_inputs_per_s=per_s["http"],
    )


def _asking(triton: Any, port: int) -> Callable[[float, int], float]:
    """Sends lists until a time, by one of Triton's clients; returns the inputs a second that were answered."""
    import numpy as np

    def ask(ends_at: float, number: int) -> float:
        texts = np.array([one.encode() for one in sentences(LIST_INPUTS, number)], object)
        tensor = triton.InferInput("args", [LIST_INPUTS], "BYTES")
        tensor.set_data_from_numpy(texts)
        answered, began_at = 0, perf_counter()
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while perf_counter() < ends_at:
                answers = client.infer(CLASSIFY.name, [tensor]).as_numpy("output")
                if len(answers) != LIST_INPUTS:
                    raise ServiceError(f"{len(answers)} answers to a list of {LIST_INPUTS}")
                answered += 1
        return answered * LIST_INPUTS / (perf_counter() - began_at)

    return ask


# --- shares of two models ---


def _measure_shares(findings: Findings, pace: Pace, cluster: Running, shares: Path) -> None:
    _share(shares, SHARE)
    sleep(IN_FORCE_S)

    def ask(requests: int) -> Counter[str]:
        asker, found = Asker(cluster.port), Counter[str]()
        for _ in range(requests):
            (answer,) = json.loads(asker.ask(f"/{TRANSLATE.name}", b'{"inputs":"a"}'))
            found[answer["translation_text"]] += 1
        asker.close()
        return found

    with ThreadPoolExecutor(LIST_CLIENTS) as pool:
        found = sum(pool.map(ask, [pace.split_requests // LIST_CLIENTS] * LIST_CLIENTS), Counter[str]())
    findings.note(canary_share_error=abs(100 * found[OTHER] / found.total() - SHARE))
    findings.raw.append({"measurement": "shares", "answered": dict(found)})


def _measure_changes(findings: Findings, pace: Pace, cluster: Running, shares: Path) -> None:
    seconds = pace.changes * pace.change_s
    calls = [Call(request_bytes("127.0.0.1", f"/{TRANSLATE.name}", b'{"inputs":"a"}'))]
    load = Load("127.0.0.1", cluster.port, calls, seconds, warm_up_s=0.0, concurrency=LIST_CLIENTS)

    def change() -> None:
        for number in range(pace.changes):
            _share(shares, SHARES[number % len(SHARES)])
            sleep(pace.change_s)

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        tally = findings.keep_tally(measure(load), "changes of the split")
        changing.result()
    findings.note(canary_lost=float(tally.requests - tally.statuses["200"]))


def _share(shares: Path, percent: int) -> None:
    beside = shares.with_suffix(".new")
    beside.write_text(f"{TRANSLATE.name} {OTHER} {percent}\n", encoding="ascii")
    beside.replace(shares)


if __name__ == "__main__":
    main("service", "What metrics, aliases, gRPC and shares of the traffic cost.", run, SERVICE_FIGURES, parts=PARTS)
