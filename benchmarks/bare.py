"""BareRuntime: an encoder's graph on ONNX Runtime alone, without tokenizer, pipeline, queue or HTTP.

It is what the machine can do with an artifact: of all ways to use it and of all batch sizes, `best` finds the fastest.
On a CPU the ways are threads of one run, spinning or not, and several runs of one thread each; on a GPU they are runs
with IO binding, and those of our encoder, which packs the rows of a batch, or pads them, in the measured time. The best
is searched in the run that it is compared with, as the machine of another run is another machine.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Literal

import numpy as np

from benchmarks.raw import BATCH_SIZES
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.encoder import Encoder, layout_of
from pipelines.runtime.providers import Device
from pipelines.runtime.rows import EncoderRow
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Way:
    """How runs use the machine: `workers` runs at once, of `threads` threads each, which may spin between operators.

    `by` says what runs: the session with arrays, the session with IO binding, or our encoder with rows.
    """

    threads: int = 1
    spins: bool = False
    workers: int = 1
    by: Literal["arrays", "binding", "encoder"] = "arrays"

    def __str__(self) -> str:
        cores = f"{self.workers} x {self.threads} threads{', spinning' if self.spins else ''}"
        return cores if self.by == "arrays" else f"{self.by}, {self.workers} at once"


ON_GPU = tuple(Way(workers=workers, by=by) for by in ("binding", "encoder") for workers in (1, 2))


@dataclass(frozen=True)
class BareRun:
    """Rows per second of a way at a batch size, and the CPU seconds of a row."""

    way: Way
    batch_size: int
    rows_per_s: float
    row_cpu_s: float

    def figures(self) -> dict[str, Any]:
        return {
            "way": str(self.way),
            "batch_size": self.batch_size,
            "rows_per_s": self.rows_per_s,
            "row_cpu_ms": 1000 * self.row_cpu_s,
        }


class BareRuntime:
    """The graph of an artifact and the texts of a load as its rows, padded in batches by arrival."""

    def __init__(
        self,
        artifact: Path,
        texts: Sequence[str],
        threads: int | None = None,
        *,
        device: Device = "cpu",
        batch_sizes: Sequence[int] = BATCH_SIZES,
    ) -> None:
        """`threads` None: as many as this process has cores."""
        opened = ModelArtifact.open(artifact)
        self._encoder = Encoder(opened, SessionConfig(device=device))
        tokenizer = self._encoder.tokenizer
        encodings = tokenizer.encode(list(texts), max_length=tokenizer.settings.max_length, offsets=False)
        self._rows = self._encoder.rows(encodings)
        self._device, self._batch_sizes = device, batch_sizes
        self._pad_token_id = tokenizer.settings.pad_token_id
        self._graph = opened.graph("model")
        self._threads = threads or len(os.sched_getaffinity(0))
        self._sessions: dict[tuple[int, bool], InferenceSession] = {}

    def best_alone(self, duration_s: float) -> BareRun:
        """One row at a time, one run at a time: the fastest number of threads, spinning or not."""
        return self._best([Way(threads, spins) for threads, spins in self._of_one_run()], (1,), duration_s)

    def best(self, duration_s: float) -> BareRun:
        """The most rows per second, whatever the way and the batch size."""
        if self._device != "cpu":
            return self._best(ON_GPU, self._batch_sizes, duration_s)
        ways = [Way(threads, spins) for threads, spins in self._of_one_run()]
        return self._best([*ways, Way(workers=self._threads)], self._batch_sizes, duration_s)

    def run(self, way: Way, batch_size: int, duration_s: float) -> BareRun:
        """Run batches for `duration_s`, after one of each worker that allocates memory."""
        run_batch = self._runner(way, batch_size)

        def work(ends_at: float) -> int:
            for n_runs in count(1):
                run_batch(n_runs)
                if perf_counter() >= ends_at:
                    break
            return n_runs

        with ThreadPoolExecutor(way.workers) as workers:
            list(workers.map(run_batch, [0] * way.workers))
            began_at, began_cpu_s = perf_counter(), process_time()
            n_rows = batch_size * sum(workers.map(work, [began_at + duration_s] * way.workers))
            seconds, cpu_s = perf_counter() - began_at, process_time() - began_cpu_s
        return BareRun(way, batch_size, n_rows / seconds, cpu_s / n_rows)

    def _runner(self, way: Way, batch_size: int) -> Callable[[int], object]:
        """Runs the batch of a number; thread-safe."""
        if way.by == "encoder":
            rows = self._batches_of_rows(batch_size)
            return lambda number: self._encoder.run(rows[number % len(rows)])
        session, batches = self._session(way), self._batches(batch_size)
        if way.by == "arrays":
            return lambda number: session.run(batches[number % len(batches)])

        def run_bound(number: int) -> None:
            binding = session.binding()
            for name, array in batches[number % len(batches)].items():
                binding.bind_cpu_input(name, array)
            for name in session.output_names:
                binding.bind_output(name, "cpu")
            session.run_bound(binding)

        return run_bound

    def _best(self, ways: Sequence[Way], sizes: Sequence[int], duration_s: float) -> BareRun:
        """Each way at each size for a share of the time; the two fastest again for the whole of it."""
        share_s = duration_s / 4
        tried = [self.run(way, size, share_s) for way in ways for size in sizes]
        finalists = islice(sorted(tried, key=lambda run: -run.rows_per_s), 2)
        again = [self.run(one.way, one.batch_size, duration_s) for one in finalists]
        return max(again, key=lambda run: run.rows_per_s)

    def _of_one_run(self) -> list[tuple[int, bool]]:
        """The numbers of threads of one run, spinning or not; one thread waits for no other."""
        several = [
            (threads, spins) for threads in {self._threads, self._threads // 2} - {0, 1} for spins in (True, False)
        ]
        return [(1, False), *several]

    def _session(self, way: Way) -> InferenceSession:
        key = (way.threads, way.spins)
        if key not in self._sessions:
            self._sessions[key] = InferenceSession(
                self._graph, SessionConfig(device=self._device, threads=way.threads, spins=way.spins)
            )
        return self._sessions[key]

    def _batches(self, batch_size: int) -> list[Feeds]:
        layout = layout_of(self._session(Way()).input_names, self._pad_token_id)
        return [layout.feeds(rows) for rows in self._batches_of_rows(batch_size)]

    def _batches_of_rows(self, batch_size: int) -> list[list[EncoderRow]]:
        starts = range(0, max(1, len(self._rows) - batch_size + 1), batch_size)
        return [(self._rows * batch_size)[start : start + batch_size] for start in starts]
