"""The Open Inference Protocol v2, as KServe, Triton and MLServer clients speak it; JSON and the binary extension.

    POST /v2/models/{task}/infer   {"id"?, "parameters"?: the task's own, "inputs": [BYTES tensors], "outputs"?,
                                    "model_name"?: as in the path, from KServe's client}
    {"model_name", "model_version", "id"?, "outputs": [{"name": "output", "datatype": "BYTES", "shape": [n, 1], ...}]}

Inputs have the names of MLServer's Hugging Face runtime. Each element of the output is one JSON document: the Hugging
Face answer to that input. `outputs[].parameters.binary_data` and `parameters.binary_data_output` ask for binary data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Literal, cast

from msgspec import Meta, defstruct

from deployments.cluster.platform import Platform
from deployments.protocols.byte_tensors import ByteTensor, Name, packed, split
from deployments.protocols.protocol import JSON, Mounted, Operation, Protocol, Reply, TaskRequest, class_name
from pipelines.errors import InvalidInputError, Path
from pipelines.misfit import require, shown
from pipelines.schema import Body, convert, decode, encode
from pipelines.tasks import TASKS
from pipelines.tasks.pipeline import Pipeline
from pipelines.tasks.task import Task

VERSION = "1"
OUTPUT = "output"
READY = "READY"
EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
"""Triton's names of what is served beyond the protocol. Of `model_repository` there is the index alone."""
NAMES = ("args", "array_inputs", "text", "text_input", "inputs", "input-0")
HEADER = "inference-header-content-length"
MAX_TENSORS = 16
_BINARY = "application/octet-stream"


class OutputParameters(Body, frozen=True):
    """MLServer's clients declare a content_type, which says BYTES again."""

    binary_data: bool | None = None
    content_type: Any = None


class Output(Body, frozen=True):
    """How the output is wanted."""

    name: Literal["output"]
    parameters: OutputParameters | None = None


class InferBody(Body, frozen=True):
    """A body of `/infer`; `body_type` adds the parameters of a task."""

    inputs: Annotated[list[ByteTensor], Meta(min_length=1, max_length=MAX_TENSORS)]
    id: Name | None = None
    outputs: Annotated[list[Output], Meta(max_length=1)] | None = None
    model_name: Name | None = None


@dataclass(frozen=True)
class InferRequest(TaskRequest):
    """A request, and how its answer is to be written. An input of several fields has a tensor for each."""

    id: str | None = None
    binary: bool = False
    fields: tuple[str, ...] = ()

    def place(self, index: int, *fields: str | int) -> Path:
        if fields and fields[0] in self.fields:
            return (fields[0], index, *fields[1:])
        return super().place(index, *fields)


@cache
def parameters_type(task: Task) -> type[Body]:
    """The class of a request's parameters: the task's own, and what clients add."""
    # MLServer's clients declare the content_type of parameters, too.
    own = [("binary_data_output", bool, False), ("content_type", Any, None)]
    name = class_name(task, "InferParameters")
    return cast(type[Body], defstruct(name, own, bases=(task.pipeline.parameters_type,), frozen=True))


@cache
def body_type(task: Task) -> type[InferBody]:
    """The class that parses a body of the task."""
    fields = [("parameters", parameters_type(task) | None, None)]
    return cast(type[InferBody], defstruct(class_name(task, "InferBody"), fields, bases=(InferBody,), frozen=True))


def tensor_names(task: Task) -> tuple[str, ...]:
    """The tensors that an input is made of."""
    return task.text_fields if len(task.text_fields) > 1 else (task.tensor,)


def model_metadata(task: Task, name: str | None = None) -> dict[str, Any]:
    """What `/v2/models/{name}` says; the default model has the task's name."""
    return {
        "name": name or task.name,
        "versions": [VERSION],
        "platform": "onnxruntime",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1, 1]} for name in tensor_names(task)],
        "outputs": [{"name": OUTPUT, "datatype": "BYTES", "shape": [-1, 1]}],
    }


class IndexBody(Body, frozen=True):
    """A body of `/v2/repository/index`: whether models that are not ready are left out."""

    ready: bool = False


def index_entry(name: str, is_ready: bool) -> dict[str, Any]:
    """A model, as Triton's repository index lists it."""
    state, reason = (READY, "") if is_ready else ("UNAVAILABLE", "no replica takes requests")
    return {"name": name, "version": VERSION, "state": state, "reason": reason}


def server_metadata(version: str) -> dict[str, Any]:
    """What `/v2` says."""
    return {"name": "sextet", "version": version, "extensions": list(EXTENSIONS)}


class OpenInference(Protocol):
    """`POST /v2/models/{task}/infer`."""

    media_types = (JSON, _BINARY)

    @property
    def name(self) -> str:
        """The task's; of another model than the task's default its own."""
        return self.pipeline.artifact.served_as or self.pipeline.task

    def read(self, body: bytes, headers: Mapping[str, str]) -> InferRequest:
        task = TASKS[self.pipeline.task]
        head, binary = split(body, headers.get(HEADER), HEADER)
        given: Any = decode(head, body_type(task))
        if given.model_name is not None:  # of a share of the traffic, the path that the client asked names the task
            allowed = dict.fromkeys((self.name, task.name))
            words = f"{' or '.join(allowed)}, as in the path"
            require(given.model_name in allowed, ("model_name",), given.model_name, words)
        columns: dict[str, list[str]] = {}
        names = [tensor.name for tensor in given.inputs]
        for index, tensor in enumerate(given.inputs):
            columns[tensor.name], binary = tensor.read(binary, ("inputs", index))
        if len(binary):
            raise InvalidInputError(f"has {len(binary)} bytes behind its last tensor; allowed: none", ())
        inputs = inputs_of(task, names, columns)
        parameters = given.parameters or task.pipeline.parameters_type()
        asked = given.outputs[0].parameters if given.outputs else None
        binary_output = given.parameters is not None and given.parameters.binary_data_output
        if asked is not None and asked.binary_data is not None:
            binary_output = asked.binary_data
        return InferRequest(
            inputs,
            parameters,
            is_list=True,
            input_path=(names[0],),
            id=given.id,
            binary=binary_output,
            fields=task.text_fields if len(task.text_fields) > 1 else (),
        )

    def write(self, request: InferRequest, answers: Sequence[Any]) -> Reply:
        documents = [encode(answer) for answer in answers]
        output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": [len(documents), 1]}
        head: dict[str, Any] = {"model_name": self.name, "model_version": VERSION, "outputs": [output]}
        if request.id is not None:
            head["id"] = request.id
        if not request.binary:
            output["data"] = [document.decode() for document in documents]
            return Reply(encode(head))
        data = packed(documents)
        output["parameters"] = {"binary_data_size": len(data)}
        described = encode(head)
        return Reply(described + data, _BINARY, {HEADER: str(len(described))})


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    task, protocol = TASKS[pipeline.task], OpenInference(pipeline)
    protocols: dict[str, Protocol] = {}
    pages: dict[str, Any] = {}
    name = protocol.name
    for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{VERSION}"):
        protocols[f"{base}/infer"] = protocol
        pages[base] = model_metadata(task, name)
        pages[f"{base}/ready"] = {"name": name, "ready": True}
    pages["/v2"] = server_metadata(version("sextet"))
    pages["/v2/health/live"] = {"live": True}
    pages["/v2/health/ready"] = {"ready": True}
    return Mounted(protocols, pages)


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    """The server's own pages are the same whatever the task."""
    return [
        Operation("/v2", "The server, in the words of the Open Inference Protocol."),
        Operation("/v2/health/live", "200 as long as the process is up."),
        Operation("/v2/health/ready", "200 when every task has a ready replica, else 503."),
        Operation("/v2/models/{task}", "What the model takes and gives."),
        Operation("/v2/models/{task}/ready", "200 when the task answers."),
        Operation(f"/v2/models/{task.name}/infer", f"{task.name}, in the Open Inference Protocol", body_type(task)),
    ]


def inputs_of(task: Task, names: Sequence[str], columns: Mapping[str, list[str]]) -> list[Any]:
    """The task's inputs, one for each element."""
    if len(task.text_fields) > 1:
        wanted = " and ".join(task.text_fields)
        if sorted(names) != sorted(task.text_fields):
            raise InvalidInputError(f"are named {shown(list(names))}; allowed: {wanted}", ("inputs",))
        if len({len(column) for column in columns.values()}) > 1:
            raise InvalidInputError(f"{wanted} have different shapes; allowed: the same number of each")
    elif len(names) != 1 or names[0] not in NAMES:
        raise InvalidInputError(f"are named {shown(list(names))}; allowed: one of {', '.join(NAMES)}", ("inputs",))
    if not columns[names[0]]:
        raise InvalidInputError("is empty; allowed: at least one element", (names[0],))
    rows = zip(*(columns[name] for name in names), strict=True)
    inputs = []
    for index, row in enumerate(rows):
        raw = row[0] if len(row) == 1 else dict(zip(names, row, strict=True))
        try:
            inputs.append(convert(raw, task.input_type, ()))
        except InvalidInputError as error:
            raise error.at((str((error.path or names)[0] if error.path else names[0]), index)) from None
    return inputs
