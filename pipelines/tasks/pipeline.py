"""Pipeline: preprocess -> forward -> postprocess, the interface of every task.

One input becomes one or more rows (a long context becomes several windows). The scheduler batches rows of different
requests with different parameters: all that depends on a request's parameters happens before or after `forward`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pipelines.errors import InvalidInputError
from pipelines.generation.decoding.request import Step
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.encoder import Encoder
from pipelines.runtime.rows import EncoderRow
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import Tokenizer
from pipelines.scheduling.batching import LearnedCost
from pipelines.scheduling.cost_measurement import measure, shapes_within, warm
from pipelines.scheduling.kept_costs import KeptCosts
from pipelines.scheduling.padded import PaddedScheduler
from pipelines.scheduling.scheduler import (
    GPU_BATCHING,
    BatchingConfig,
    OnBatch,
    OutputT,
    QueueConfig,
    RowT,
    Scheduler,
    unreported,
)
from pipelines.schema import Parameters

InputT = TypeVar("InputT")
ParametersT = TypeVar("ParametersT", bound=Parameters)

StepWriter = Callable[[Step], tuple[Any, bool]]
"""Turns each step of one row, in order, into an event to stream, and tells whether it is the last one."""


class Pipeline(ABC, Generic[InputT, ParametersT, RowT, OutputT]):
    """A task on one loaded artifact. Thread-safe: it holds no state of a request."""

    task: ClassVar[str]
    parameters_type: type[ParametersT]

    def __init__(self, artifact: ModelArtifact) -> None:
        self.artifact = artifact

    @abstractmethod
    def parse(self, raw: Any) -> InputT:
        """One input from JSON or Python, checked; raises InvalidInputError that names the field."""

    @abstractmethod
    def preprocess(self, inputs: Sequence[InputT], parameters: ParametersT) -> list[list[RowT]]:
        """Tokenize all inputs in one call: the rows of each input, at least one row per input."""

    @abstractmethod
    def forward(self, rows: Sequence[RowT]) -> list[OutputT]:
        """Run the model on a batch: one output per row, in order, without padding."""

    @abstractmethod
    def postprocess(
        self, given: InputT, rows: Sequence[RowT], outputs: Sequence[OutputT], parameters: ParametersT
    ) -> Any:
        """The answer to one input, as JSON-ready Python, from all of its rows."""

    @abstractmethod
    def scheduler(
        self,
        batching: BatchingConfig | None = None,
        queue: QueueConfig | None = None,
        on_batch: OnBatch = unreported,
        costs: Path | None = None,
    ) -> Scheduler[Any, OutputT]:
        """The scheduler of this model. For an encoder it first measures what batches cost, which takes seconds, unless
        `costs`, a folder of this machine, knows it from before. A GPU's are always measured.
        """

    def release_memory(self) -> None:
        """Give back to the system what the largest batches took; the next ones take longer. Safe beside `forward`."""

    def stream(self, row: RowT, parameters: ParametersT) -> tuple[RowT, StepWriter]:
        """The row to decode for a stream, and the writer of its steps.

        Raises InvalidInputError for a task that does not stream, and for parameters that need the whole answer.
        """
        raise InvalidInputError(f"stream is true; {self.task} answers at once: allowed is false")

    def adapted(self) -> "Mapping[str, Pipeline[Any, Any, Any, Any]]":
        """For each adapter that is loaded beside the model, by name, a pipeline that answers with it."""
        return {}

    def parameters(self, given: Mapping[str, Any]) -> ParametersT:
        """The task's parameters from a mapping; raises InvalidInputError or UnusedParametersError."""
        return self.parameters_type.from_mapping(given)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Answer one input, or a list of them in order, as `transformers.pipeline` (4.57) does."""
        if isinstance(inputs, list):
            return list(self._answers([self.parse(one) for one in inputs], self.parameters(parameters)))
        return next(self._answers([self.parse(inputs)], self.parameters(parameters)))

    def _answers(self, inputs: Sequence[InputT], parameters: ParametersT) -> Iterator[Any]:
        for given, rows in zip(inputs, self.preprocess(inputs, parameters), strict=True):
            yield self.postprocess(given, rows, self.forward(rows), parameters)


class EncoderPipeline(Pipeline[InputT, ParametersT, EncoderRow, OutputT]):
    """A task whose `forward` is one run of an encoder."""

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        super().__init__(artifact)
        self._encoder = Encoder(artifact, config)
        self._config = config

    @property
    def tokenizer(self) -> Tokenizer:
        return self._encoder.tokenizer

    def release_memory(self) -> None:
        self._encoder.release_memory()

    def scheduler(
        self,
        batching: BatchingConfig | None = None,
        queue: QueueConfig | None = None,
        on_batch: OnBatch = unreported,
        costs: Path | None = None,
    ) -> PaddedScheduler[EncoderRow, OutputT]:
        batching = batching or (BatchingConfig() if self._config.device == "cpu" else GPU_BATCHING)
        longest = self._encoder.tokenizer.settings.max_length
        shapes = list(shapes_within(longest, batching.max_batch_tokens, batching.max_batch_size))
        self._encoder.warm_up({tokens for _, tokens in shapes})
        run = (self.forward, self._encoder.blank_row, shapes, batching.concurrency)
        kept = None
        if costs is not None and self._config.device == "cpu":
            kept = KeptCosts.of(costs, self.artifact, self._config.threads, batching)
        known = kept.read() if kept is not None else []
        if known:
            warm(*run)
        else:
            known = measure(*run)
            if kept is not None:
                kept.write(known)
        on_end = kept.write if kept is not None else lambda known: None
        cost = LearnedCost(known, packed=self._encoder.is_packed, on_end=on_end)
        return PaddedScheduler(self.forward, batching, cost.model, queue, on_batch, cost)
