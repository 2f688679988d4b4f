"""The Open Inference Protocol v2, as KServe, Triton and MLServer clients speak it; JSON and the binary extension.

    POST /v2/models/{task}/infer   {"id"?, "parameters"?: the task's own, "inputs": [BYTES tensors], "outputs"?}
    {"model_name", "model_version", "id"?, "outputs": [{"name": "output", "datatype": "BYTES", "shape": [n, 1], ...}]}

Inputs have the names of MLServer's Hugging Face runtime. Each element of the output is one JSON document: the Hugging
Face answer to that input. `outputs[].parameters.binary_data` and `parameters.binary_data_output` ask for binary data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from deployments.http.request import decode_json
from deployments.protocols.byte_tensors import ByteTensor, packed
from deployments.protocols.protocol import JSON, Protocol, Reply, TaskRequest
from pipelines.errors import InvalidInputError
from pipelines.schema import shown

VERSION = "1"
OUTPUT = "output"
PAIR = ("question", "context")
NAMES = ("args", "array_inputs", "text", "text_input", "inputs", "input-0")
WRITERS = ("translation", "summarization", "text-generation")
HEADER = "inference-header-content-length"
_BINARY = "application/octet-stream"
_BODY_KEYS = ("id", "parameters", "inputs", "outputs")
_NOT_THE_TASKS = ("binary_data_output", "content_type")  # MLServer's clients declare the latter: it says BYTES again


@dataclass(frozen=True)
class InferRequest(TaskRequest):
    """A request, and how its answer is to be written."""

    id: str | None = None
    binary: bool = False
    tensor: str = ""


def model_metadata(task: str) -> dict[str, Any]:
    """What `/v2/models/{task}` says."""
    names = PAIR if task == "question-answering" else ("array_inputs",) if task in WRITERS else ("args",)
    return {
        "name": task,
        "versions": [VERSION],
        "platform": "onnxruntime",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1, 1]} for name in names],
        "outputs": [{"name": OUTPUT, "datatype": "BYTES", "shape": [-1, 1]}],
    }


def server_metadata(version: str) -> dict[str, Any]:
    """What `/v2` says."""
    return {"name": "sextet", "version": version, "extensions": ["binary_tensor_data"]}


class OpenInference(Protocol):
    """`POST /v2/models/{task}/infer`."""

    media_types = (JSON, _BINARY)

    def read(self, body: bytes, headers: Mapping[str, str]) -> InferRequest:
        given, binary = _split(body, headers.get(HEADER))
        if not isinstance(given, Mapping):
            raise InvalidInputError(f"the body is {shown(given)}; allowed: an object with inputs")
        for key in given:
            if key not in _BODY_KEYS:
                raise InvalidInputError(f"the body has the key {shown(key)}; allowed: {', '.join(_BODY_KEYS)}")
        identifier = given.get("id")
        if identifier is not None and not isinstance(identifier, str):
            raise InvalidInputError(f"id is {shown(identifier)}; allowed: a string")
        parameters = _object(given.get("parameters"), "parameters")
        tensors = self._tensors(given.get("inputs"), binary)
        asked = _asks_binary(given.get("outputs"))
        return InferRequest(
            inputs=self._inputs(tensors),
            is_list=True,
            parameters={name: value for name, value in parameters.items() if name not in _NOT_THE_TASKS},
            id=identifier,
            binary=_flag(parameters, "binary_data_output", "parameters") if asked is None else asked,
            tensor=tensors[0].name,
        )

    def write(self, request: InferRequest, answers: Sequence[Any]) -> Reply:
        documents = [orjson.dumps(answer) for answer in answers]
        output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": [len(documents), 1]}
        head: dict[str, Any] = {"model_name": self.pipeline.task, "model_version": VERSION, "outputs": [output]}
        if request.id is not None:
            head["id"] = request.id
        if not request.binary:
            output["data"] = [document.decode() for document in documents]
            return Reply(orjson.dumps(head))
        data = packed(documents)
        output["parameters"] = {"binary_data_size": len(data)}
        described = orjson.dumps(head)
        return Reply(described + data, _BINARY, {HEADER: str(len(described))})

    def named(self, error: InvalidInputError, request: InferRequest, index: int) -> InvalidInputError:
        message = str(error)
        if not message.startswith("inputs"):
            return error
        return type(error)(f"{request.tensor}[{index}]{message.removeprefix('inputs')}")

    def _tensors(self, given: Any, binary: memoryview) -> list[ByteTensor]:
        if not isinstance(given, list) or not given:
            raise InvalidInputError(f"inputs is {shown(given)}; allowed: a list of tensors")
        tensors = []
        for index, one in enumerate(given):
            tensor, binary = ByteTensor.read(one, f"inputs[{index}]", binary)
            tensors.append(tensor)
        if len(binary):
            raise InvalidInputError(f"the body has {len(binary)} bytes behind its last tensor; allowed: none")
        return tensors

    def _inputs(self, tensors: Sequence[ByteTensor]) -> list[Any]:
        """The task's inputs, one for each element."""
        names = tuple(tensor.name for tensor in tensors)
        if self.pipeline.task == "question-answering":
            if sorted(names) != sorted(PAIR):
                raise InvalidInputError(f"inputs are named {shown(list(names))}; allowed: question and context")
            columns = {tensor.name: tensor.texts for tensor in tensors}
            if len(columns["question"]) != len(columns["context"]):
                raise InvalidInputError("question and context have different shapes; allowed: the same number of each")
            inputs: list[Any] = [
                {"question": question, "context": context}
                for question, context in zip(columns["question"], columns["context"], strict=True)
            ]
        elif len(names) != 1 or names[0] not in NAMES:
            raise InvalidInputError(f"inputs are named {shown(list(names))}; allowed: one of {', '.join(NAMES)}")
        else:
            inputs = list(tensors[0].texts)
        if not inputs:
            raise InvalidInputError(f"{names[0]} is empty; allowed: at least one element")
        for index, one in enumerate(inputs):
            if one == "":
                raise InvalidInputError(f"{names[0]}[{index}] is empty; allowed: a text")
        return inputs


def _split(body: bytes, header: str | None) -> tuple[Any, memoryview]:
    """The JSON of a body, and the binary data behind it."""
    if header is None:
        return decode_json(body), memoryview(b"")
    if not (header.isascii() and header.isdigit() and int(header[:12]) <= len(body)):
        raise InvalidInputError(f"{HEADER} is {shown(header)}; allowed: up to the {len(body)} bytes of the body")
    return decode_json(body[: int(header)]), memoryview(body)[int(header) :]


def _asks_binary(given: Any) -> bool | None:
    """Whether the output is wanted as binary data; None where nothing is said of it."""
    if given is None or given == []:
        return None
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], Mapping):
        raise InvalidInputError(f"outputs is {shown(given)}; allowed: a list of one object")
    if given[0].get("name") != OUTPUT or set(given[0]) - {"name", "parameters"}:
        raise InvalidInputError(f"outputs[0] is {shown(dict(given[0]))}; allowed: the name {OUTPUT} and parameters")
    parameters = _object(given[0].get("parameters"), "outputs[0].parameters")
    for name in parameters:
        if name not in ("binary_data", "content_type"):
            raise InvalidInputError(f"outputs[0].parameters has {shown(name)}; allowed: binary_data")
    return _flag(parameters, "binary_data", "outputs[0].parameters") if "binary_data" in parameters else None


def _object(given: Any, where: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"{where} is {shown(given)}; allowed: an object")
    return given


def _flag(given: Mapping[str, Any], name: str, where: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInputError(f"{where}.{name} is {shown(value)}; allowed: true or false")
    return value
