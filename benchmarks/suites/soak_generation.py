"""Soak of generation: ten minutes of clients that join, leave, stop and sample at random, over HTTP.

    python -m benchmarks.suites.soak_generation                    what `make soak-generation` does
    python -m benchmarks.suites.soak_generation --duration-s 60    whether it works

Each client sends one of a few dozen requests, reads the answer or drops the connection in the middle of it, and sends
another. Every whole answer has to equal the answer to the same request alone, the memory of the replica must not grow,
and at the end every slot has to be free. The command ends with status 1 where one of these fails.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.figures.report import write_report
from benchmarks.figures.result import Result, default_path
from benchmarks.load.asker import Asker
from benchmarks.load.texts import sentences
from benchmarks.replicas import MemoryWatch
from benchmarks.suites.cluster import WRITE, Running, measured_cluster, running
from benchmarks.suites.generation import SLOTS, artifact_of
from benchmarks.suites.suite import say
from pipelines.errors import SextetError

PATH = f"/{WRITE.name}"
DURATION_S = 600.0
CLIENTS = 20  # more than slots: some wait
QUESTIONS = 24
LEAVES = 0.3  # share of the requests whose reader goes away
MOST_GROWTH = 0.05
SETTLED_SHARE = 0.2  # of the duration, after which memory arenas have grown to their size
LAST_TOKENS = 48  # of each stream at the end, all of which have to run at once
ANSWER_S = 120.0


@dataclass
class Seen:
    """Outcomes of the requests; `different` lists answers that differ from the answer to the same request alone."""

    counts: Counter[str]
    different: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description="Random joins, cancels, stops and seeds over HTTP.")
    parser.add_argument("--duration-s", type=float, default=DURATION_S)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        result, failed = run(args.duration_s, args.seed)
    except (SextetError, OSError, HTTPException) as error:
        sys.exit(f"soak: {error}")
    if args.duration_s >= DURATION_S:
        result.write(default_path(result.name))
        write_report()
    print(json.dumps(result.headline()))
    if failed:
        sys.exit(f"soak: {'; '.join(failed)}")


def run(duration_s: float, seed: int) -> tuple[Result, list[str]]:
    """The result, and what failed."""
    artifact = artifact_of(WRITE, say)
    configuration = measured_cluster({WRITE.name: artifact}, slots={WRITE.name: SLOTS})
    with (
        tempfile.TemporaryDirectory(prefix="sextet-soak-") as folder,
        running(configuration, Path(folder)) as cluster,
    ):
        watch = MemoryWatch(WRITE.name, cluster.process_id)
        watch.start()
        began_at = perf_counter()
        try:
            seen, at_once = _soak(cluster, duration_s, seed)
        finally:
            watch.stop()
        settled_s = perf_counter() - began_at - (1 - SETTLED_SHARE) * duration_s
    growth = watch.growth(settled_s)
    failed = [f"{len(seen.different)} answers differ: {seen.different[0]}"] if seen.different else []
    if errors := {name: count for name, count in seen.counts.items() if name.startswith("failed")}:
        failed.append(f"requests failed: {errors}")
    if at_once < SLOTS.slots:
        failed.append(f"only {at_once} of {SLOTS.slots} slots were free at the end")
    if growth is None or (growth > MOST_GROWTH and duration_s >= DURATION_S):
        failed.append(f"memory grew by {growth}; allowed: {MOST_GROWTH}")
    figures = {"different_answers": [float(len(seen.different))], "free_slots_at_the_end": [float(at_once)]}
    figures |= {"soak_memory_growth": [growth]} if growth is not None else {}
    figures |= {name: [float(count)] for name, count in sorted(seen.counts.items())}
    result = Result(
        name="soak-generation",
        scenario="soak",
        command="make soak-generation"
        if duration_s >= DURATION_S
        else shlex.join(["python", "-m", "benchmarks.suites.soak_generation", *sys.argv[1:]]),
        load={
            "task": WRITE.name,
            "clients": CLIENTS,
            "leaves": LEAVES,
            "duration_s": duration_s,
            "seed": seed,
            **vars(SLOTS),
        },
        figures=figures,
        points=[],
        memory=watch.to_json(),
        warnings=failed,
    )
    return result, failed


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Bodies of requests: greedy ones, sampled ones with seeds, some with stop strings; short and long prompts."""
    chosen = random.Random(seed)
    made = []
    for number in range(count):
        parameters: dict[str, Any] = {"max_new_tokens": chosen.choice((4, 16, 40, 80)), "return_full_text": False}
        parameters |= {"do_sample": False} if number % 2 else {"do_sample": True, "seed": number, "temperature": 0.9}
        if number % 3 == 0:
            parameters["stop"] = [chosen.choice((".", " the", "\n", "is"))]
        prompt = " ".join(sentences(chosen.choice((1, 3, 12, 40)), seed + number))
        made.append({"inputs": prompt, "parameters": parameters})
    return made


def _soak(cluster: Running, duration_s: float, seed: int) -> tuple[Seen, int]:
    asked = [json.dumps(body).encode() for body in questions(QUESTIONS, seed)]
    asker = Asker(cluster.port, ANSWER_S)
    alone = [asker.ask(PATH, body) for body in asked]
    asker.close()
    say(f"{len(alone)} answers alone; {CLIENTS} clients for {duration_s:.0f} s")
    seen = Seen(Counter(), [])
    ends_at = perf_counter() + duration_s

    def client(number: int) -> None:
        chosen, asker = random.Random(1000 * seed + number), Asker(cluster.port, ANSWER_S)
        while perf_counter() < ends_at:
            index = chosen.randrange(len(asked))
            try:
                if chosen.random() < LEAVES:
                    _leave(cluster, asked[index], chosen.random())
                    seen.counts["left"] += 1
                else:
                    answer = asker.ask(PATH, asked[index])
                    seen.counts["answered"] += 1
                    if answer != alone[index]:
                        seen.different.append(f"question {index}: {alone[index]!r} became {answer!r}")
            except (OSError, HTTPException) as error:
                seen.counts[f"failed: {type(error).__name__} {error}"[:120]] += 1
                sleep(0.1)
            sleep(chosen.expovariate(5.0))
        asker.close()

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(client, range(CLIENTS)))
    return seen, _at_once(cluster)


def _leave(cluster: Running, body: bytes, patience: float) -> None:
    """Begin to read a stream, or wait a little for an answer, and drop the connection; raises HTTPException."""
    asker = Asker(cluster.port, 0.05 + 2 * patience)
    try:
        if patience < 0.5:
            next(asker.events(PATH, _streamed(json.loads(body))), None)
            sleep(patience)
        else:
            asker.ask(PATH, body)
    except TimeoutError:  # it leaves before the answer
        pass
    finally:
        asker.close()


def _at_once(cluster: Running) -> int:
    """How many of as many streams as there are slots write before any of them has ended."""
    parameters = {"max_new_tokens": LAST_TOKENS, "min_new_tokens": LAST_TOKENS, "do_sample": False}

    def stream(prompt: str) -> tuple[float, float]:
        """When its first and its last event came."""
        asker = Asker(cluster.port, ANSWER_S)
        came_at = [perf_counter() for _ in asker.events(PATH, _streamed({"inputs": prompt, "parameters": parameters}))]
        asker.close()
        return came_at[0], came_at[-1]

    with ThreadPoolExecutor(SLOTS.slots) as clients:
        times = list(clients.map(stream, sentences(SLOTS.slots, 99)))
    first_end = min(ended for _, ended in times)
    return sum(begun < first_end for begun, _ in times)


def _streamed(body: dict[str, Any]) -> bytes:
    return json.dumps(body | {"stream": True}).encode()


if __name__ == "__main__":
    main()
