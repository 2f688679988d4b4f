"""LocalModel: answers with a pipeline and its scheduler, in the process of an actor.

The scheduler of serving forms the batches, in its own threads, of the rows of several parts. While one part is in the
model, the next one is tokenized and the one before is written, in the threads of Ray Data's calls.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pipelines
from deployments.config import LimitsConfig
from deployments.guidance.compiler import LlGuidance
from deployments.protocols.protocol import SLICE_INPUTS, TaskRequest
from pipelines.errors import GenerationError, InvalidInputError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.providers import Device
from pipelines.scheduling.scheduler import (
    GPU_BATCHING,
    MAX_QUEUE_S,
    BatchingConfig,
    BatchReport,
    QueueConfig,
    Scheduler,
)
from pipelines.tasks import TASKS
from pipelines.tasks.pipeline import Pipeline
from stores.fetch import fetch
from stores.filesystem import cache_folder

T = TypeVar("T")
_OF_INPUTS = (InvalidInputError, GenerationError)
"""Errors of one input: the others have answers."""
UNBOUNDED = QueueConfig(max_queue_s=MAX_QUEUE_S, max_queue_tokens=2**40, max_queue_rows=2**40)
"""What waits is bounded by the parts that an actor holds."""
SEQUENCES = 16  # that a generator decodes at once
AHEAD = (
    4  # batches that wait of a part when the next one joins it: the model never waits, and the first part ends first
)


@dataclass(frozen=True)
class Refused:
    """No answer to this input, and why, in one line."""

    reason: str


@dataclass(frozen=True)
class LocalModel:
    """`model` is an artifact's address, `threads` those of all batches at once. It opens in an actor."""

    task: str
    model: str
    parameters: dict[str, Any]
    device: Device = "cpu"
    threads: int = 1

    def open(self) -> "OpenedModel":
        """Load it; raises ArtifactError, ConfigurationError or InvalidInputError."""
        definition = TASKS[self.task]
        on_cpu = self.device == "cpu"
        batching = BatchingConfig(concurrency=self.threads) if on_cpu else GPU_BATCHING
        pipeline: Pipeline[Any, Any, Any, Any] = pipelines.load(
            fetch(self.model).folder,
            task=self.task,
            device=self.device,
            threads=self.threads,
            concurrency=1 if definition.generates else batching.concurrency,
            max_batch_size=batching.max_batch_size,
            compiler=LlGuidance,
            slots=SlotsConfig(slots=SEQUENCES) if definition.generates else None,
        )
        return OpenedModel(pipeline, batching, pipeline.parameters(self.parameters))


class OpenedModel:
    """Answers lists of inputs; thread-safe."""

    def __init__(self, pipeline: Pipeline[Any, Any, Any, Any], batching: BatchingConfig, parameters: Any) -> None:
        self._pipeline, self._parameters = pipeline, parameters
        self._sorts = not TASKS[pipeline.task].generates
        self._scheduler: Scheduler[Any, Any] = pipeline.scheduler(batching, UNBOUNDED, self._on_batch, _costs())
        self._enough = AHEAD * batching.max_batch_size if self._sorts else SEQUENCES
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="scheduler", daemon=True).start()

    def answers(self, inputs: Sequence[Any]) -> list[Any]:
        """An answer for each input, in order, or Refused."""
        parsed = [_tried(partial(self._parsed, one)) for one in inputs]
        prepared = self._prepared(parsed)
        sound = [rows for rows in prepared if not isinstance(rows, Refused)]
        outputs = iter(asyncio.run_coroutine_threadsafe(self._outputs(sound), self._loop).result())
        answers = []
        for given, rows in zip(parsed, prepared, strict=True):
            found = rows if isinstance(rows, Refused) else next(outputs)
            if not isinstance(found, Refused):
                found = _tried(partial(self._pipeline.postprocess, given, rows, found, self._parameters))
            answers.append(found)
        return answers

    def _parsed(self, raw: Any) -> Any:
        TaskRequest([raw], self._parameters).check(LimitsConfig())
        return self._pipeline.parse(raw)

    def _prepared(self, parsed: Sequence[Any]) -> list[Any]:
        """The rows of each input, or Refused. Slices are tokenized at once; one that fails, input by input."""
        prepared = list(parsed)
        sound = [index for index, one in enumerate(parsed) if not isinstance(one, Refused)]
        for start in range(0, len(sound), SLICE_INPUTS):
            indices = sound[start : start + SLICE_INPUTS]
            given = [parsed[index] for index in indices]
            some: Any = _tried(partial(self._pipeline.preprocess, given, self._parameters))
            if isinstance(some, Refused):
                some = [_tried(partial(self._rows, one)) for one in given]
            for index, rows in zip(indices, some, strict=True):
                prepared[index] = rows
        return prepared

    def _rows(self, given: Any) -> list[Any]:
        (rows,) = self._pipeline.preprocess([given], self._parameters)
        return rows

    async def _outputs(self, prepared: Sequence[list[Any]]) -> list[Any]:
        """The outputs of each input's rows, or Refused. Where the model fails for some input, each is tried alone."""
        rows = [row for of_input in prepared for row in of_input]
        # Rows of equal length make batches without padding, the longest first, so that the end is short.
        order = sorted(range(len(rows)), key=lambda index: -rows[index].n_tokens) if self._sorts else range(len(rows))
        try:
            found = await self._submit([rows[index] for index in order])
        except _OF_INPUTS:
            return await asyncio.gather(*(self._alone(of_input) for of_input in prepared))
        outputs: list[Any] = [None] * len(rows)
        for index, output in zip(order, found, strict=True):
            outputs[index] = output
        remaining = iter(outputs)
        return [list(islice(remaining, len(of_input))) for of_input in prepared]

    async def _alone(self, rows: list[Any]) -> Any:
        try:
            return (await self._scheduler.submit(rows)).outputs
        except _OF_INPUTS as error:
            return Refused(str(error))

    async def _submit(self, rows: list[Any]) -> list[Any]:
        """Outputs in order. Parts take turns: fair shares would let those that began together also end together, and
        the model would wait while the next ones are tokenized.
        """
        async with self._turn:
            while self._scheduler.waiting_rows > self._enough:
                self._moved.clear()
                await self._moved.wait()
            submitted = asyncio.ensure_future(self._scheduler.submit(rows))
            await asyncio.sleep(0)  # its rows are in the queue now
        try:
            return (await submitted).outputs
        finally:
            self._moved.set()

    def _on_batch(self, _report: BatchReport) -> None:
        self._moved.set()


def _tried(work: Callable[[], T]) -> T | Refused:
    try:
        return work()
    except _OF_INPUTS as error:
        return Refused(str(error))


def _costs() -> Path | None:
    """Where this node keeps what batches cost."""
    try:
        return cache_folder() / "costs"
    except RuntimeError:  # this user has no home
        return None
