"""Raw: the same artifact called in this process, without HTTP, queue or batcher, as the reference of a server.

`best_offline` finds the fastest fixed batch size for these texts. `run(8, ...)` batches by count, as simple servers do.
`run(1, ...)` measures the service time of a request alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pipelines
from benchmarks.load.bodies import BodyConfig, huggingface
from benchmarks.load.tally import Histogram
from pipelines.tasks import TASKS

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
TRIAL_SHARE = 0.5  # of a measurement's duration, for each batch size that is tried


@dataclass(frozen=True)
class RawRun:
    """Inputs per second at a batch size, and how long each batch took."""

    batch_size: int
    inputs_per_s: float
    batch_ms: dict[str, float]

    def figures(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "inputs_per_s": self.inputs_per_s, "batch_ms": self.batch_ms}


class RawPipeline:
    """A loaded artifact and the load's texts as its inputs, in the order of their arrival."""

    def __init__(self, artifact: Path, threads: int, texts: Sequence[str], body: BodyConfig | None = None) -> None:
        self._pipeline = pipelines.load(artifact, threads=threads)
        task = TASKS[self._pipeline.task]
        bodies = [huggingface(task, [text], body or BodyConfig())[1] for text in texts]
        self._inputs = [self._pipeline.parse(one["inputs"]) for one in bodies]
        self._parameters = self._pipeline.parameters(bodies[0]["parameters"])
        self._next = 0

    def run(self, batch_size: int, duration_s: float, warm_up_s: float = 0.5) -> RawRun:
        """Preprocess, forward and postprocess batches by arrival for `duration_s`."""
        warm_at = perf_counter() + warm_up_s
        while perf_counter() < warm_at:
            self._batch(batch_size)
        times, n_batches = Histogram(), 0
        started_at = ended_at = perf_counter()
        while ended_at < started_at + duration_s:
            began_at = ended_at
            self._batch(batch_size)
            ended_at = perf_counter()
            times.record(ended_at - began_at)
            n_batches += 1
        return RawRun(batch_size, n_batches * batch_size / (ended_at - started_at), times.summary())

    def best_offline(self, duration_s: float) -> RawRun:
        """The fastest fixed batch size, measured again for `duration_s`.

        Sizes grow until two in a row were slower than the best: one may have been so by noise.
        """
        tried: list[RawRun] = []
        for batch_size in BATCH_SIZES:
            tried.append(self.run(batch_size, TRIAL_SHARE * duration_s))
            best = max(tried, key=lambda run: run.inputs_per_s)
            if best not in tried[-2:]:
                break
        return self.run(best.batch_size, duration_s)

    def _batch(self, batch_size: int) -> None:
        chosen = [self._inputs[(self._next + index) % len(self._inputs)] for index in range(batch_size)]
        self._next += batch_size
        rows = self._pipeline.preprocess(chosen, self._parameters)
        outputs = iter(self._pipeline.forward([row for of_input in rows for row in of_input]))
        for given, of_input in zip(chosen, rows, strict=True):
            self._pipeline.postprocess(given, of_input, [next(outputs) for _ in of_input], self._parameters)
