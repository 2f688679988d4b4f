"""Fairness: what a short request costs beside requests that are thousands of times larger.

    python -m benchmarks.suites.fairness                  what `make bench-fairness` does, within eight minutes
    python -m benchmarks.suites.fairness --quick          one repetition with short windows: whether it works

The sentiment and SmolLM2 models of the shipped cluster.yaml are served by the real `sextet serve`, one replica each.
Each ratio is measured alone and beside the large requests in turn, on one cluster:

    short_p99_beside_list       p99 of a sentence to classify, Poisson arrivals, beside one list of 1,024 texts of 400
                                words (sent again as soon as it is answered), over its p99 alone
    short_refused_beside_list   how many of them were not answered with 200
    short_generation_p50_beside_streams   p50 of 8 new tokens beside 8 streams of 2,000, as many as slots, over alone
    classify_loop_cpu_ms        CPU time of the replica's event loop thread per request of 16 tokens, less that of a
                                replica that does nothing
    classify_loop_cpu_at_equal_rate_ms   the same, less that of a replica that answers as many requests a second, as it
                                waits before each answer: at a higher rate one turn of the loop serves several requests

A request that is refused, or not answered within the window, counts as a wait of a whole window: the ratio of a server
that refuses is a lower bound. The list and the streams are inside before a window begins.

CPU times are read from /proc/PID/task/TID/stat, in ticks of 10 ms, before and after thousands of requests. The event
loop is the thread that takes most CPU while the replica answers requests that need no forward.

Writes benchmarks/results/fairness.json and docs/performance.md, and prints one line of JSON last.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import psutil

from benchmarks import Say
from benchmarks.figures.bars import FAIRNESS_FIGURES
from benchmarks.load.asker import Asker
from benchmarks.load.client import request_bytes
from benchmarks.load.crowd import Crowd
from benchmarks.load.generator import Call, Load, measure
from benchmarks.load.texts import Lengths, counter, sentences, synthetic
from benchmarks.noop import WAIT_HEADER
from benchmarks.replicas import find
from benchmarks.suites.cluster import CLASSIFY, NOOP, WRITE, Running, measured_cluster, running
from benchmarks.suites.generation import artifact_of
from benchmarks.suites.suite import Findings, Options, Repeated, main
from pipelines.errors import SextetError
from pipelines.runtime.artifact import ModelArtifact

SENTENCE = "The acting was wonderful and the story moved everybody in the room."
LIST_INPUTS, LIST_WORDS = 1024, 400
SHORT_PER_S = 20.0
STREAMS, STREAM_TOKENS, SHORT_TOKENS = 8, 2000, 8
CPU_TOKENS, CPU_TEXTS, CPU_CLIENTS = 16, 256, 32
SETTLED = 3.0  # times its p50 alone: where a short request takes no longer, what was aborted is gone


class FairnessError(SextetError):
    """The server is not in the state that a measurement needs."""


@dataclass(frozen=True)
class Pace(Repeated):
    """How long and how often."""

    repetitions: int = 5
    alone_s: float = 12.0
    beside_s: float = 15.0
    list_head_start_s: float = 3.0
    generations: int = 40  # at most, in a window
    cpu_s: float = 4.0
    settle_s: float = 180.0  # at most


QUICK = Pace(repetitions=1, alone_s=3.0, beside_s=5.0, generations=5, cpu_s=2.0)


def run(options: Options, say: Say) -> Findings:
    """All figures; raises SextetError."""
    pace, findings = options.pace(Pace(), QUICK), Findings()
    models = {task.name: artifact_of(task, say) for task in (CLASSIFY, WRITE)}
    with (
        tempfile.TemporaryDirectory(prefix="sextet-bench-") as folder,
        running(measured_cluster(models, noop=True), Path(folder)) as cluster,
    ):
        for repetition in range(pace.repetitions):
            say(f"repetition {repetition + 1} of {pace.repetitions}")
            _measure_loop(findings, pace, cluster, models[CLASSIFY.name], say)
            _measure_beside_list(findings, pace, cluster, repetition, say)
            _measure_beside_streams(findings, pace, cluster, repetition, say)
    findings.load = {
        "list": f"{LIST_INPUTS} x {LIST_WORDS} words",
        "streams": f"{STREAMS} x {STREAM_TOKENS} tokens",
        "short_per_s": SHORT_PER_S,
        "cpu_clients": CPU_CLIENTS,
        "pace": vars(pace),
    }
    return findings


def list_body(seed: int) -> bytes:
    """One POST of LIST_INPUTS texts of LIST_WORDS words."""
    texts = synthetic(Lengths.parse(f"fixed:{LIST_WORDS}"), LIST_INPUTS, seed, counter(None), LIST_WORDS)
    return _body(texts)


def loop_thread(process_id: int, work: Callable[[], object]) -> int:
    """The thread of a process that takes most CPU while `work` runs."""
    before = thread_cpu_s(process_id)
    work()
    after = thread_cpu_s(process_id)
    return max(after, key=lambda thread: after[thread] - before.get(thread, 0.0))


def thread_cpu_s(process_id: int) -> dict[int, float]:
    """User and system seconds of each thread so far."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(process_id).threads()}


# --- a sentence beside a list ---


def _measure_beside_list(findings: Findings, pace: Pace, cluster: Running, repetition: int, say: Say) -> None:
    path, content = f"/{CLASSIFY.name}", list_body(repetition)
    load = Load(
        "127.0.0.1",
        cluster.port,
        [Call(request_bytes("127.0.0.1", path, _body(SENTENCE)))],
        duration_s=pace.alone_s,
        warm_up_s=0.0,
        rate_per_s=SHORT_PER_S,
        seed=repetition,
    )

    def send(asker: Asker, _number: int, begun: Callable[[], None]) -> None:
        begun()
        asker.ask(path, content)

    alone_ms, _, p50_ms = _short(findings, "a sentence alone", load, pace.alone_s)
    with Crowd(cluster.port, 1, send) as crowd:
        sleep(pace.list_head_start_s)
        since = perf_counter()
        beside_ms, refused, _ = _short(findings, "a sentence beside a list", load, pace.beside_s)
        until = since + pace.beside_s
    crowd.check(since, until)
    _settle(pace, cluster, path, _body(SENTENCE), p50_ms)
    findings.note(
        short_p99_beside_list=beside_ms / alone_ms,
        short_refused_beside_list=float(refused),
        short_p99_alone_ms=alone_ms,
        short_p99_beside_list_ms=beside_ms,
    )
    say(f"a sentence: p99 {alone_ms:.1f} ms alone, {beside_ms:.1f} ms beside a list, {refused} not answered")


def _short(findings: Findings, label: str, load: Load, window_s: float) -> tuple[float, int, float]:
    """p99 in ms, the number that was not answered, and p50 in ms of those that were."""
    tally = findings.keep_tally(measure(replace(load, duration_s=window_s, timeout_s=window_s)), label)
    refused = tally.requests - tally.statuses["200"]
    p99_ms = tally.latency.percentile_ms(99) if refused <= tally.requests / 100 else 1000 * window_s
    return p99_ms, refused, tally.latency.percentile_ms(50)


# --- a short generation beside streams ---


def _measure_beside_streams(findings: Findings, pace: Pace, cluster: Running, repetition: int, say: Say) -> None:
    path = f"/{WRITE.name}"
    prompts = sentences(STREAMS + 2 * pace.generations, repetition)
    streamed, alone, beside = prompts[:STREAMS], prompts[STREAMS::2], prompts[STREAMS + 1 :: 2]

    def send(asker: Asker, number: int, begun: Callable[[], None]) -> None:
        for _ in asker.events(path, _written(streamed[number], STREAM_TOKENS, stream=True)):
            begun()

    alone_ms = _generate(findings, "8 tokens alone", cluster, alone, pace.alone_s)
    with Crowd(cluster.port, STREAMS, send) as crowd:
        crowd.wait()
        since = perf_counter()
        beside_ms = _generate(findings, "8 tokens beside streams", cluster, beside, pace.beside_s)
        until = perf_counter()
    crowd.check(since, until)
    _settle(pace, cluster, path, _written(streamed[0], SHORT_TOKENS), alone_ms)
    findings.note(
        short_generation_p50_beside_streams=beside_ms / alone_ms,
        short_generation_p50_alone_ms=alone_ms,
        short_generation_p50_beside_streams_ms=beside_ms,
    )
    say(f"8 tokens: p50 {alone_ms:.0f} ms alone, {beside_ms:.0f} ms beside {STREAMS} streams")


def _generate(findings: Findings, label: str, cluster: Running, prompts: Sequence[str], window_s: float) -> float:
    """p50 in ms of short generations, one after another until the window or the prompts end."""
    asker, waits_ms = Asker(cluster.port, window_s), []
    ends_at = perf_counter() + window_s
    for prompt in prompts:
        began_at = perf_counter()
        try:
            asker.ask(f"/{WRITE.name}", _written(prompt, SHORT_TOKENS))
        except (OSError, HTTPException):  # refused, or not answered in time
            waits_ms.append(1000 * window_s)
        else:
            waits_ms.append(1000 * (perf_counter() - began_at))
        if perf_counter() > ends_at:
            break
    asker.close()
    findings.raw.append({"measurement": label, "waits_ms": waits_ms})
    return median(waits_ms)


# --- CPU time of the event loop ---


def _measure_loop(findings: Findings, pace: Pace, cluster: Running, artifact: Path, say: Say) -> None:
    opened = ModelArtifact.open(artifact)
    texts = synthetic(Lengths.parse(f"fixed:{CPU_TOKENS}"), CPU_TEXTS, 0, counter(opened), CPU_TOKENS)
    classify_ms, per_s = _loop_ms(findings, pace, cluster, CLASSIFY.name, texts)
    noop_ms, _ = _loop_ms(findings, pace, cluster, NOOP, texts)
    waiting_ms, _ = _loop_ms(findings, pace, cluster, NOOP, texts, wait_s=CPU_CLIENTS / per_s)
    findings.note(
        classify_loop_cpu_ms=classify_ms - noop_ms,
        classify_loop_cpu_at_equal_rate_ms=classify_ms - waiting_ms,
        loop_cpu_of_classify_ms=classify_ms,
        loop_cpu_of_noop_ms=noop_ms,
        loop_cpu_of_noop_at_equal_rate_ms=waiting_ms,
    )
    say(
        f"event loop: {classify_ms:.3f} ms for a request, {noop_ms:.3f} ms for one of a replica that does nothing, "
        f"{waiting_ms:.3f} ms at the same rate, of {per_s:.0f}/s"
    )


def _loop_ms(
    findings: Findings, pace: Pace, cluster: Running, name: str, texts: Sequence[str], wait_s: float = 0.0
) -> tuple[float, float]:
    """CPU time of the event loop of the replica `name` for each of its answers, and answers a second."""
    (process_id,) = [pid for pid, replica in find(cluster.process_id).items() if replica == name]
    asker = Asker(cluster.port)
    thread = loop_thread(process_id, lambda: [asker.answer(f"/{name}", b"{}") for _ in range(500)])
    asker.close()
    headers = {WAIT_HEADER: str(wait_s)} if wait_s else {}
    made = [Call(request_bytes("127.0.0.1", f"/{name}", _body(text), headers)) for text in texts]
    load = Load("127.0.0.1", cluster.port, made, pace.cpu_s, warm_up_s=0.0, concurrency=CPU_CLIENTS)
    before_s = thread_cpu_s(process_id)[thread]
    tally = findings.keep_tally(measure(load), f"event loop of {name}{', waiting' if wait_s else ''}")
    return 1000 * (thread_cpu_s(process_id)[thread] - before_s) / tally.requests, tally.per_s["requests"]


# --- all of them ---


def _body(inputs: str | list[str]) -> bytes:
    return json.dumps({"inputs": inputs}).encode()


def _written(prompt: str, tokens: int, *, stream: bool = False) -> bytes:
    """The body of a greedy generation of exactly so many tokens."""
    parameters = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    return json.dumps({"inputs": prompt, "parameters": parameters, "stream": stream}).encode()


def _settle(pace: Pace, cluster: Running, path: str, body: bytes, alone_ms: float) -> None:
    """Wait until what was aborted no longer slows a short request down; raises FairnessError."""
    asker = Asker(cluster.port, pace.settle_s)
    give_up_at = perf_counter() + pace.settle_s
    quick = 0
    while quick < 5:
        began_at = perf_counter()
        if began_at > give_up_at:
            raise FairnessError(f"a short request of {path} is still slow {pace.settle_s:.0f} s after the large ones")
        try:
            asker.ask(path, body)
        except (OSError, HTTPException):
            quick = 0
            sleep(1.0)
        else:
            quick = quick + 1 if 1000 * (perf_counter() - began_at) < SETTLED * alone_ms else 0
    asker.close()


if __name__ == "__main__":
    main("fairness", "A short request beside large ones, and the event loop's CPU time.", run, FAIRNESS_FIGURES)
