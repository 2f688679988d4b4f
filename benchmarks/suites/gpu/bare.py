"""Bare: the artifact on ONNX Runtime in this process, as fast as it goes, as the reference of the server.

Texts are tokenized before. Two ways are tried, each with every batch size, and the fastest run counts:

    bound      the graph itself with IO binding: padded ids are copied to the device, logits back
    forward    the pipeline's own `forward` from two threads, which also pads, or packs, the rows
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import pipelines
from benchmarks import Say
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.encoder import pad
from pipelines.runtime.providers import Device
from pipelines.runtime.session import InferenceSession, SessionConfig

THREADS = {"bound": 1, "forward": 2}
TRIAL_SHARE = 0.15  # of a measurement's duration, for each way and batch size that is tried


@dataclass(frozen=True)
class BareRun:
    """Rows per second of one way at one batch size."""

    way: str
    batch_size: int
    rows_per_s: float


class BareRuntime:
    """An encoder's artifact and the load's texts as its rows."""

    def __init__(self, artifact: Path, device: Device, texts: Sequence[str], threads: int) -> None:
        self._pipeline = pipelines.load(artifact, device=device, threads=threads)
        parameters = self._pipeline.parameters({})
        inputs = [self._pipeline.parse(text) for text in texts]
        self._rows = [row for of_input in self._pipeline.preprocess(inputs, parameters) for row in of_input]
        opened = ModelArtifact.open(artifact)
        self._session = InferenceSession(opened.graph("model"), SessionConfig(device=device, threads=threads))
        self._pad_token_id = opened.manifest.tokenizer.pad_token_id
        self._batches: dict[int, list[dict[str, Any]]] = {}
        self._next = count()

    def best(self, batch_sizes: Sequence[int], duration_s: float, repetitions: int, say: Say) -> list[BareRun]:
        """`repetitions` runs of the fastest way and batch size."""
        ways: dict[str, Callable[[int], None]] = {"forward": self._forward}
        if set(self._session.input_names) <= {"input_ids", "attention_mask", "token_type_ids"}:
            ways["bound"] = self._bound
        tried = [
            self._run(way, run, batch_size, TRIAL_SHARE * duration_s)
            for batch_size in batch_sizes
            for way, run in ways.items()
        ]
        for one in tried:
            say(f"bare, {one.way}, batches of {one.batch_size}: {one.rows_per_s:.0f} rows/s")
        fastest = max(tried, key=lambda one: one.rows_per_s)
        return [self._run(fastest.way, ways[fastest.way], fastest.batch_size, duration_s) for _ in range(repetitions)]

    def _run(self, way: str, run: Callable[[int], None], batch_size: int, duration_s: float) -> BareRun:
        run(batch_size)  # allocates
        run(batch_size)
        began_at = perf_counter()
        done = [0] * THREADS[way]
        ended_at = [began_at] * THREADS[way]

        def repeat(number: int) -> None:
            while ended_at[number] < began_at + duration_s:
                run(batch_size)
                done[number] += batch_size
                ended_at[number] = perf_counter()

        threads = [threading.Thread(target=repeat, args=(number,)) for number in range(THREADS[way])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return BareRun(way, batch_size, sum(done) / (max(ended_at) - began_at))

    def _forward(self, batch_size: int) -> None:
        self._pipeline.forward(self._chosen(next(self._next), batch_size))

    def _bound(self, batch_size: int) -> None:
        batches = self._batches.get(batch_size) or self._padded(batch_size)
        binding = self._session.binding()
        for name, array in batches[next(self._next) % len(batches)].items():
            binding.bind_cpu_input(name, array)
        for name in self._session.output_names:
            binding.bind_output(name, "cpu")
        self._session.run_bound(binding)

    def _padded(self, batch_size: int) -> list[dict[str, Any]]:
        """Several batches of the graph's inputs, (rows, longest) int64 each, so that no run reads what the last did."""
        made = [
            pad(self._chosen(index, batch_size), self._pad_token_id, self._session.input_names)
            for index in range(max(1, len(self._rows) // batch_size))
        ]
        self._batches[batch_size] = made
        return made

    def _chosen(self, index: int, batch_size: int) -> list[Any]:
        start = index * batch_size
        return [self._rows[(start + place) % len(self._rows)] for place in range(batch_size)]


def noted(run: BareRun) -> dict[str, Any]:
    """The entry of `Result.raw`."""
    return asdict(run)
