"""Contestants: engines that generate, ours and others, each started alone on the machine for what is measured of it.

Prompts are token ids, every answer has exactly the length that is asked for, and decoding is greedy. `tokens_per_s` is
of a closed loop over HTTP, or of static batches of engines that have no server.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Protocol

from benchmarks.load.asker import HOST, Asker
from benchmarks.load.bodies import BodyConfig, calls
from benchmarks.load.generator import Call, Load, measure
from benchmarks.load.tally import Tally
from benchmarks.peers.peer import Installed, PeerError
from benchmarks.peers.servers import WriterServer, serving
from benchmarks.peers.writers import Running, Writer, WriterModel, writing
from benchmarks.suites.cluster import WRITE, measured_cluster, running
from benchmarks.suites.suite import SEXTET
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.tokenizer import Tokenizer

Prompt = Sequence[int]


class Seat(Protocol):
    """An engine that is running."""

    def first_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """The first token after each prompt."""

    def tokens_per_s(
        self, prompts: Sequence[Prompt], new_tokens: int, at_once: int, warm_up_s: float, window_s: float
    ) -> float:
        """Of `at_once` requests at any time."""


@dataclass(frozen=True)
class HttpSeat:
    """A server at a port. `call` makes a request, `first` asks for one token."""

    port: int
    call: Callable[[Prompt, int, bool], Call]
    first: Callable[[Prompt], int]
    streams: bool
    """Whether `tokens_per_s` asks for streams: ours has to, others may answer in one piece."""
    keep: Callable[[Tally], object] = lambda tally: tally

    def first_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        try:
            return [self.first(prompt) for prompt in prompts]
        except (OSError, HTTPException, LookupError, ValueError) as error:
            raise PeerError(f"a prompt was not answered: {error}") from None

    def tokens_per_s(
        self, prompts: Sequence[Prompt], new_tokens: int, at_once: int, warm_up_s: float, window_s: float
    ) -> float:
        made = [self.call(prompt, new_tokens, self.streams) for prompt in prompts]
        load = Load(HOST, self.port, made, duration_s=window_s, warm_up_s=warm_up_s, concurrency=at_once)
        tally = measure(load)
        self.keep(tally)
        if failed := {status: count for status, count in tally.statuses.items() if status != "200"}:
            raise PeerError(f"of {tally.requests} requests failed {failed}")
        return new_tokens * tally.per_s["requests"]


@dataclass(frozen=True)
class BatchSeat:
    """An engine without a server: static batches, one after another."""

    program: Running

    def first_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        return [tokens[0] for tokens in self.program.write(prompts, 1).tokens]

    def tokens_per_s(
        self, prompts: Sequence[Prompt], new_tokens: int, at_once: int, warm_up_s: float, window_s: float
    ) -> float:
        turns = cycle(prompts)
        opens_at = perf_counter() + warm_up_s
        tokens, seconds = 0, 0.0
        while seconds < window_s:
            is_measured = perf_counter() >= opens_at
            batch = [next(turns) for _ in range(at_once)]
            took_s = self.program.write(batch, new_tokens).seconds
            if is_measured:
                tokens, seconds = tokens + at_once * new_tokens, seconds + took_s
            opens_at = min(opens_at, perf_counter())  # one batch is a warm-up
        return tokens / seconds


@dataclass(frozen=True)
class Contestant:
    """Something to start: `seated` runs it until the end of the block, and raises PeerError where that fails."""

    name: str
    seated: Callable[[WriterModel], AbstractContextManager[Seat]]


def other(installed: Installed, probe: Prompt) -> Contestant:
    """A server or a program of benchmarks.peers."""
    if isinstance(installed, WriterServer):
        return Contestant(installed.name, partial(_server, installed, probe))
    assert isinstance(installed, Writer)
    return Contestant(installed.name, partial(_program, installed))


def ours(artifact: Path, slots: SlotsConfig, keep: Callable[[Tally], object] = lambda tally: tally) -> Contestant:
    """`sextet serve` with an artifact, its threads as shipped."""
    return Contestant(SEXTET, lambda _model: _ours(artifact, slots, keep))


def exactly(new_tokens: int, *, stream: bool) -> BodyConfig:
    """So many new tokens, greedily."""
    parameters: Mapping[str, object] = {"min_new_tokens": new_tokens, "return_full_text": False}
    return BodyConfig(stream=stream, max_new_tokens=new_tokens, parameters=parameters)


@contextmanager
def _ours(artifact: Path, slots: SlotsConfig, keep: Callable[[Tally], object]) -> Iterator[Seat]:
    tokenizer = Tokenizer(ModelArtifact.open(artifact))

    with (
        tempfile.TemporaryDirectory(prefix="sextet-bench-") as folder,
        running(measured_cluster({WRITE.name: artifact}, slots={WRITE.name: slots}), Path(folder)) as cluster,
    ):
        host = f"{HOST}:{cluster.port}"

        def call(prompt: Prompt, new_tokens: int, stream: bool) -> Call:
            body = exactly(new_tokens, stream=stream)
            (made,) = calls(host, "", WRITE, [tokenizer.decode(prompt)], 1, body)
            return Call(made.request, new_tokens=new_tokens)

        def first(prompt: Prompt) -> int:
            parameters = {"max_new_tokens": 1, "min_new_tokens": 1, "do_sample": False, "details": True}
            body = {"inputs": tokenizer.decode(prompt), "parameters": parameters}
            asker = Asker(cluster.port)
            try:
                answer = json.loads(asker.ask(f"/{WRITE.name}", json.dumps(body).encode()))
            finally:
                asker.close()
            return int(answer[0]["details"]["tokens"][0]["id"])

        yield HttpSeat(cluster.port, call, first, streams=True, keep=keep)


@contextmanager
def _server(server: WriterServer, probe: Prompt, model: WriterModel) -> Iterator[Seat]:
    with serving(server, model, probe) as port:
        yield HttpSeat(
            port,
            lambda prompt, new_tokens, stream: server.call(prompt, new_tokens, stream=stream),
            lambda prompt: server.ask(port, prompt, 1)[0],
            streams=False,
        )


@contextmanager
def _program(writer: Writer, model: WriterModel) -> Iterator[Seat]:
    with writing(writer, model) as program:
        yield BatchSeat(program)
