"""The Hugging Face task API: pure functions between a JSON body and a task's inputs, parameters and answers.

    {"inputs": one or a list, "parameters": {...}, "stream": bool, "options": {...}}

    read(task, body) -> TaskRequest            InvalidInputError names the field
    write(task, request, answers) -> JSON      one answer per input, in order

`stream` is text-generation's. Of the old Inference API's `options`, `use_cache` and `wait_for_model` are accepted,
because both hold by themselves: nothing is cached, and only loaded models get requests. Other keys are refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.http.request import decode_json
from deployments.protocols.protocol import Protocol, Reply, TaskRequest, json_reply
from pipelines.errors import InvalidInputError
from pipelines.schema import shown

OPTIONS = ("use_cache", "wait_for_model")
ALIASES = {"generation_parameters": "generate_parameters"}


class HuggingFace(Protocol):
    """The native protocol, at the task's own path."""

    def read(self, body: bytes, headers: Mapping[str, str]) -> TaskRequest:
        return read(self.pipeline.task, decode_json(body))

    def write(self, request: TaskRequest, answers: Sequence[Any]) -> Reply:
        return json_reply(write(self.pipeline.task, request, answers))

    def named(self, error: InvalidInputError, request: TaskRequest, index: int) -> InvalidInputError:
        return named(error, request, index)


def read(task: str, body: Any) -> TaskRequest:
    """A decoded JSON body as a request; raises InvalidInputError that names the field and what is allowed."""
    if not isinstance(body, Mapping):
        raise InvalidInputError(f"the body is {shown(body)}; allowed: an object with inputs and perhaps parameters")
    allowed = ("inputs", "parameters", "options", *(("stream",) if task == "text-generation" else ()))
    for key in body:
        if key not in allowed:
            raise InvalidInputError(f"the body has the key {shown(key)}; allowed: {', '.join(allowed)}")
    if body.get("inputs") is None:
        raise InvalidInputError("inputs is missing; allowed: one input or a list of them")
    _check_options(body.get("options"))
    inputs, stream = body["inputs"], _flag(body.get("stream"), "stream")
    is_list = isinstance(inputs, list)
    if stream and is_list:
        raise InvalidInputError("inputs is a list; allowed with stream: one text")
    return TaskRequest(_not_empty(inputs), is_list, _parameters(body.get("parameters")), stream)


def write(task: str, request: TaskRequest, answers: Sequence[Any]) -> Any:
    """The answers to all inputs as the client expects them.

    A list of inputs has the list of their single answers. One text to classify has its list of labels in a list of
    its own: clients keep only the first element of what they get.
    """
    if request.is_list or task == "text-classification":
        return list(answers)
    return answers[0]


def named(error: InvalidInputError, request: TaskRequest, index: int) -> InvalidInputError:
    """A pipeline's error about one input of a list, with the field's index in the message."""
    message = str(error)
    if request.is_list and message.startswith("inputs"):
        return type(error)(f"inputs[{index}]{message.removeprefix('inputs')}")
    return error


def _not_empty(inputs: Any) -> list[Any]:
    many = inputs if isinstance(inputs, list) else [inputs]
    if not many:
        raise InvalidInputError("inputs is empty; allowed: at least one input")
    for index, one in enumerate(many):
        if one is None or one == "" or one == {} or one == []:
            where = f"inputs[{index}]" if isinstance(inputs, list) else "inputs"
            raise InvalidInputError(f"{where} is empty; allowed: a text")
    return many


def _parameters(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"parameters is {shown(given)}; allowed: an object")
    parameters: dict[str, Any] = {}
    for name, value in given.items():
        canonical = ALIASES.get(str(name), str(name))
        if canonical in parameters:
            raise InvalidInputError(f"parameters has both {canonical} and its alias; allowed: one of them")
        parameters[canonical] = value
    return parameters


def _check_options(given: Any) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"options is {shown(given)}; allowed: an object")
    for name, value in given.items():
        if name not in OPTIONS:
            raise InvalidInputError(f"options has the key {shown(name)}; allowed: {', '.join(OPTIONS)}")
        _flag(value, f"options.{name}")


def _flag(value: Any, name: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} is {shown(value)}; allowed: true or false")
    return value
