"""The Hugging Face task API, at the task's own path.

    {"inputs": one or a list, "parameters": {...}, "stream": bool, "options": {...}}

`stream` is of tasks that stream. Of the old Inference API's `options`, `use_cache` and `wait_for_model` are accepted:
nothing is cached, and only loaded models get requests, so both hold by themselves.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Union, cast

from msgspec import Meta, defstruct

from deployments.cluster.platform import Platform
from deployments.config import MAX_INPUTS
from deployments.protocols.protocol import Mounted, Operation, Protocol, Reply, TaskRequest, class_name, json_reply
from pipelines.errors import InvalidInputError
from pipelines.schema import Body, decode
from pipelines.tasks import TASKS
from pipelines.tasks.pipeline import Pipeline
from pipelines.tasks.task import Task


class Options(Body, frozen=True):
    """Both hold by themselves, whatever their value."""

    use_cache: bool = True
    wait_for_model: bool = False


class HuggingFace(Protocol):
    """`POST /{task}`."""

    def __init__(self, pipeline: Pipeline[Any, Any, Any, Any]) -> None:
        super().__init__(pipeline)
        self.task = TASKS[pipeline.task]

    def read(self, body: bytes, headers: Mapping[str, str]) -> TaskRequest:
        return read(self.task, body)

    def write(self, request: TaskRequest, answers: Sequence[Any]) -> Reply:
        return json_reply(write(self.task, request, answers))


@cache
def body_type(task: Task) -> type[Body]:
    """The class that parses a body of the task."""
    fields: list[Any] = [
        ("inputs", Union[task.input_type, many(task)]),  # noqa: UP007
        ("parameters", task.pipeline.parameters_type | None, None),
        ("options", Options | None, None),
    ]
    if task.streams:
        fields.append(("stream", bool, False))
    return cast(type[Body], defstruct(class_name(task, "Request"), fields, bases=(Body,), frozen=True))


def answer_types(task: Task) -> tuple[Any, ...]:
    """The types of the answer to one input, and to a list of them."""
    one, several = task.answer_type, list[task.answer_type]  # type: ignore[name-defined]
    return (several,) if task.wraps_answer else (one, several)


def many(task: Task) -> Any:
    """The type of a list of inputs."""
    return Annotated[list[task.input_type], Meta(min_length=1, max_length=MAX_INPUTS)]  # type: ignore[name-defined]


def read(task: Task, body: bytes) -> TaskRequest:
    """A body as a request; raises InvalidInputError that says where and what is allowed."""
    given: Any = decode(body, body_type(task))
    stream = task.streams and given.stream
    is_list = isinstance(given.inputs, list)
    if stream and is_list:
        raise InvalidInputError("is a list; allowed with stream: one text", ("inputs",))
    parameters = task.pipeline.parameters_type() if given.parameters is None else given.parameters
    return TaskRequest(given.inputs if is_list else [given.inputs], parameters, is_list, stream)


def write(task: Task, request: TaskRequest, answers: Sequence[Any]) -> Any:
    """The answers to all inputs as the client expects them.

    A list of inputs has the list of their answers. Where the task wraps its answer, one input has a list of one answer:
    clients keep only the first element of what they get.
    """
    return list(answers) if request.is_list or task.wraps_answer else answers[0]


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    return Mounted({"/": HuggingFace(pipeline)})


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    example = {"inputs": task.examples[0].inputs, "parameters": dict(task.examples[0].parameters)}
    summary = f"{task.name}: one input, or a list of inputs that is answered by a list in the same order"
    return [Operation(f"/{task.name}", summary, body_type(task), answer_types(task), example, streams=task.streams)]
