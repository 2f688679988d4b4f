"""Pipeline: preprocess -> forward -> postprocess, the shape that every task shares.

One input becomes one or more rows (a long context becomes several windows). Rows of different requests, with
different parameters, go through `forward` together; everything that depends on a parameter of the request happens
before or after it. That is all a batcher has to know.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pipelines.generation.decoding.request import Cancelled, never
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.cost_model import UNMEASURED, CostModel
from pipelines.tasks.task import Parameters


class Row(Protocol):
    """What one line of a batch must tell: its length in tokens, special tokens included."""

    @property
    def n_tokens(self) -> int: ...


InputT = TypeVar("InputT")
ParametersT = TypeVar("ParametersT", bound=Parameters)
RowT = TypeVar("RowT", bound=Row)
OutputT = TypeVar("OutputT")


class Pipeline(ABC, Generic[InputT, ParametersT, RowT, OutputT]):
    """A task on one loaded artifact. Thread-safe: it holds no state of a request."""

    task: ClassVar[str]
    parameters_type: type[ParametersT]
    slots: int = 0
    """How many calls of `forward`, from as many threads, decode together; 0 where only the rows of one call do."""

    def __init__(self, artifact: ModelArtifact) -> None:
        self.artifact = artifact

    @abstractmethod
    def parse(self, raw: Any) -> InputT:
        """One input as it came from JSON or Python, checked; raises InvalidInputError naming the field."""

    @abstractmethod
    def preprocess(self, inputs: Sequence[InputT], parameters: ParametersT) -> list[list[RowT]]:
        """Tokenize all inputs in one call: the rows of each input, at least one row per input."""

    @abstractmethod
    def forward(self, rows: Sequence[RowT], cancelled: Cancelled = never) -> list[OutputT]:
        """Run the model on one batch of rows: one output per row, in order, padding removed."""

    @abstractmethod
    def postprocess(
        self, given: InputT, rows: Sequence[RowT], outputs: Sequence[OutputT], parameters: ParametersT
    ) -> Any:
        """The answer to one input, as JSON-ready Python, from all of its rows."""

    def measure_cost(self, max_batch_tokens: int, max_batch_size: int, concurrency: int = 1) -> CostModel:
        """What a batch within these bounds costs here and now, which takes seconds and warms the model up.

        `UNMEASURED` where the cost of a forward does not follow from its shape: how long a decoder goes on is unknown.
        """
        return UNMEASURED

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
