"""Soak of generation: clients that come, go, stop and draw at random, for ten minutes over HTTP.

    python -m benchmarks.suites.soak_generation                    what `make soak-generation` does
    python -m benchmarks.suites.soak_generation --duration-s 60    whether it works

Each client asks one of a few dozen questions, reads the answer or leaves in the middle of it, and asks another. Every
whole answer has to be the one that the same question got when nobody else was there; a replica's memory has to stay
what it was; and at the end every slot has to be free. Ends with status 1 where one of these fails.
"""

import argparse
import asyncio
import json
import random
import shlex
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.figures.report import write_report
from benchmarks.figures.result import Result, default_path
from benchmarks.load.sentences import sentences
from benchmarks.suites.cluster import Running, cut_down, running
from benchmarks.suites.generation import SLOTS, artifact_of
from benchmarks.suites.replicas import MemoryWatch
from benchmarks.suites.suite import say
from pipelines.errors import SextetError

TASK = "text-generation"
DURATION_S = 600.0
CLIENTS = 20  # more than slots: some wait
QUESTIONS = 24
LEAVES = 0.3  # share of the requests whose reader goes away
MOST_GROWTH = 0.05
SETTLED_SHARE = 0.2  # of the duration: arenas have grown to their size by then
LAST_TOKENS = 48  # of the streams that have to run all at once at the end
ANSWER_S = 120.0


@dataclass
class Seen:
    """What became of the requests; `different` names answers that were not those of the same question alone."""

    counts: Counter[str]
    different: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description="Random joins, cancels, stops and seeds over HTTP.")
    parser.add_argument("--duration-s", type=float, default=DURATION_S)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        result, failed = run(args.duration_s, args.seed)
    except SextetError as error:
        sys.exit(f"soak: {error}")
    if args.duration_s >= DURATION_S:
        result.write(default_path(result.name))
        write_report()
    print(json.dumps(result.headline()))
    if failed:
        sys.exit(f"soak: {'; '.join(failed)}")


def run(duration_s: float, seed: int) -> tuple[Result, list[str]]:
    """The result, and what failed."""
    artifact = artifact_of(TASK, say)
    configuration = cut_down({TASK: artifact}, slots={TASK: SLOTS})
    with (
        tempfile.TemporaryDirectory(prefix="sextet-soak-") as folder,
        running(configuration, Path(folder)) as cluster,
    ):
        watch = MemoryWatch(TASK, cluster.process_id)
        watch.start()
        began_at = perf_counter()
        try:
            seen, at_once = asyncio.run(_soak(cluster, duration_s, seed))
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
            "task": TASK,
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


async def _soak(cluster: Running, duration_s: float, seed: int) -> tuple[Seen, int]:
    asked = questions(QUESTIONS, seed)
    alone = [await _answer(cluster, body) for body in asked]
    say(f"{len(alone)} answers alone; {CLIENTS} clients for {duration_s:.0f} s")
    seen = Seen(Counter(), [])
    ends_at = perf_counter() + duration_s

    async def client(number: int) -> None:
        chosen = random.Random(1000 * seed + number)
        while perf_counter() < ends_at:
            index = chosen.randrange(len(asked))
            try:
                if chosen.random() < LEAVES:
                    await _leave(cluster, asked[index], chosen.random())
                    seen.counts["left"] += 1
                else:
                    answer = await _answer(cluster, asked[index])
                    seen.counts["answered"] += 1
                    if answer != alone[index]:
                        seen.different.append(f"question {index}: {alone[index]!r} became {answer!r}")
            except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
                seen.counts[f"failed: {type(error).__name__} {error}"[:120]] += 1
                await asyncio.sleep(0.1)
            await asyncio.sleep(chosen.expovariate(5.0))

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return seen, await _at_once(cluster)


async def _open(cluster: Running, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose request was sent and answered with 200; raises ValueError for another status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
    content = json.dumps(body).encode()
    head = f"POST /{TASK} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    received = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in received.split(b"\r\n", 1)[0]:
        writer.close()
        raise ValueError(received.split(b"\r\n", 1)[0].decode(errors="replace"))
    return reader, writer


async def _answer(cluster: Running, body: dict[str, Any]) -> bytes:
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await _open(cluster, body)
        try:
            return await reader.read()
        finally:
            writer.close()


async def _leave(cluster: Running, body: dict[str, Any], patience: float) -> None:
    """Begin to read a stream, or wait a little for an answer, and go away."""
    streamed = patience < 0.5
    try:
        async with asyncio.timeout(0.05 + 2 * patience):
            reader, writer = await _open(cluster, body | ({"stream": True} if streamed else {}))
    except TimeoutError:  # left before the answer began: the connection is gone with the task
        return
    try:
        async with asyncio.timeout(patience):
            await reader.readuntil(b"\n\n")
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    writer.transport.abort()


async def _at_once(cluster: Running) -> int:
    """How many of as many streams as there are slots write before any of them has ended."""
    parameters = {"max_new_tokens": LAST_TOKENS, "min_new_tokens": LAST_TOKENS, "do_sample": False}
    begun: list[float] = []
    ended: list[float] = []

    async def stream(prompt: str) -> None:
        reader, writer = await _open(cluster, {"inputs": prompt, "parameters": parameters, "stream": True})
        await reader.readuntil(b"\n\n")
        begun.append(perf_counter())
        await reader.read()
        ended.append(perf_counter())
        writer.close()

    async with asyncio.timeout(ANSWER_S):
        await asyncio.gather(*(stream(prompt) for prompt in sentences(SLOTS.slots, 99)))
    return sum(at < min(ended) for at in begun)


if __name__ == "__main__":
    main()
