"""The `/predict` of text-embeddings-inference, for tasks that label a text or a pair of texts.

    {"inputs": text | [text, second text] | [[text] or [text, second text], ...], "raw_scores", "truncate"}

One text, or one pair, is answered by its labels, best first; a list of lists by a list of those. As there, a text that
is too long is refused unless `truncate` is true.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from msgspec import Meta

from deployments.cluster.platform import Platform
from deployments.config import MAX_INPUTS
from deployments.protocols.protocol import Mounted, Operation, Protocol, Reply, TaskRequest, json_reply
from pipelines.errors import InputTooLongError
from pipelines.misfit import require
from pipelines.runtime.tokenizer import TextOrPair
from pipelines.schema import Body, Text, convert, decode
from pipelines.tasks import TASKS
from pipelines.tasks.pipeline import EncoderPipeline, Pipeline
from pipelines.tasks.task import Task

NAME = "text-embeddings-inference"
_ALLOWED = "a text, a pair of texts, or a list of lists of one or two, none of them empty"


class PredictBody(Body, frozen=True):
    """A body of `/predict`."""

    inputs: (
        Text
        | Annotated[list[Text | Annotated[list[Text], Meta(min_length=1, max_length=2)]], Meta(max_length=MAX_INPUTS)]
    )
    truncate: bool = False
    raw_scores: bool = False
    truncation_direction: Literal["right", "Right"] = "right"

    def __post_init__(self) -> None:
        if isinstance(self.inputs, list):
            is_pair = len(self.inputs) in (1, 2) and all(isinstance(one, str) for one in self.inputs)
            require(is_pair or self.is_list, ("inputs",), self.inputs, _ALLOWED)

    @property
    def is_list(self) -> bool:
        given = self.inputs
        return isinstance(given, list) and bool(given) and all(isinstance(one, list) for one in given)


@dataclass(frozen=True)
class PredictRequest(TaskRequest):
    """A request, and whether a text that is too long is cut."""

    truncate: bool = False


class Predict(Protocol):
    """`POST /predict`."""

    pipeline: EncoderPipeline[Any, Any, Any]

    def read(self, body: bytes, headers: Mapping[str, str]) -> PredictRequest:
        given: PredictBody = decode(body, PredictBody)
        task = TASKS[self.pipeline.task]
        inputs = [_text(one, task) for one in (given.inputs if given.is_list else [given.inputs])]
        chosen = {"function_to_apply": "none"} if given.raw_scores else {}
        parameters = task.pipeline.parameters_type.from_mapping(chosen)
        return PredictRequest(inputs, parameters, given.is_list, truncate=given.truncate)

    def parse(self, request: PredictRequest) -> tuple[list[Any], Any]:
        """Raises InputTooLongError for the first text that the model would not read to its end."""
        inputs, parameters = super().parse(request)
        if not request.truncate:
            require_length(self.pipeline, request, inputs)
        return inputs, parameters

    def write(self, request: TaskRequest, answers: Sequence[Any]) -> Reply:
        return json_reply(list(answers) if request.is_list else answers[0])


def require_length(pipeline: EncoderPipeline[Any, Any, Any], request: TaskRequest, texts: Sequence[TextOrPair]) -> None:
    """Raise InputTooLongError for the first text, or pair, that the model would not read to its end."""
    most = pipeline.tokenizer.settings.max_length
    # No token is shorter than a byte, and a handful of special ones are added.
    long = [index for index, text in enumerate(texts) if len("".join(text).encode()) + 8 > most]
    encodings = pipeline.tokenizer.encode([texts[index] for index in long], offsets=False) if long else []
    for index, encoding in zip(long, encodings, strict=True):
        if len(encoding.ids) > most:
            raise InputTooLongError(
                f"has {len(encoding.ids)} tokens; allowed: at most {most}, or truncate: true", request.place(index)
            )


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    if NAME not in TASKS[pipeline.task].protocols:
        return Mounted()
    return Mounted({"/predict": Predict(pipeline)})


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    if NAME not in task.protocols:
        return []
    labels = (task.answer_type, list[task.answer_type])  # type: ignore[name-defined]
    summary = f"{task.name}, as text-embeddings-inference answers"
    return [Operation(f"/{task.name}/predict", summary, PredictBody, labels)]


def _text(given: Any, task: Task) -> Any:
    """One text, or a pair of them, as the task takes it."""
    texts = cast(list[str], given if isinstance(given, list) else [given])
    one = texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]}
    return convert(one, task.input_type)
