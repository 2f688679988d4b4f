"""ModelInfer, and the messages of ModelStreamInfer: requests and answers in protobuf, otherwise as over HTTP.

A parameter that is a list or an object comes as JSON in `string_param`: messages have no other place for it. So may a
number: KServe's messages have no place for one with a fraction.
"""

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from deployments.config import MAX_INPUTS
from deployments.http.errors import Failure, RouteNotFoundError
from deployments.protocols.byte_tensors import ByteTensor, packed
from deployments.protocols.open_inference import (
    MAX_TENSORS,
    OUTPUT,
    VERSION,
    InferRequest,
    OpenInference,
    inputs_of,
    parameters_type,
)
from deployments.protocols.open_inference_grpc.frames import MEDIA_TYPES, GrpcReply, only
from deployments.protocols.open_inference_grpc.messages import decoded, message
from deployments.protocols.protocol import Reply
from pipelines.errors import InvalidInputError, Path
from pipelines.misfit import require, shown
from pipelines.schema import convert, encode, read_json
from pipelines.tasks import TASKS

EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
"""Parameters of Triton's streams: a request may ask for a last response without an answer; the last one says so."""


@dataclass(frozen=True)
class StreamedRequest(InferRequest):
    """A message of a stream."""

    empty_final: bool = False


class Infer(OpenInference):
    """`inference.GRPCInferenceService/ModelInfer`."""

    media_types = MEDIA_TYPES

    def read(self, body: bytes, headers: Mapping[str, str]) -> InferRequest:
        given = decoded("ModelInferRequest", only(body))
        return self._request(given, _parameters(given.parameters))

    def write(self, request: Any, answers: Sequence[Any]) -> Reply:
        return GrpcReply(self._response(request, answers).SerializeToString())

    def _request(self, given: Any, named: Mapping[str, Any]) -> InferRequest:
        task = TASKS[self.pipeline.task]
        if given.model_name not in (names := dict.fromkeys((task.name, self.name, *self.adapted))):
            raise RouteNotFoundError(f"there is no model {shown(given.model_name)} here; allowed: {', '.join(names)}")
        if given.model_version not in ("", VERSION):
            raise RouteNotFoundError(f"{given.model_name} has no version {given.model_version!r}; allowed: {VERSION}")
        _check_outputs(given.outputs)
        columns = _columns(given)
        tensors = [tensor.name for tensor in given.inputs]
        return InferRequest(
            inputs_of(task, tensors, columns),
            convert(named, parameters_type(task), ("parameters",), texts=True),
            is_list=True,
            input_path=(tensors[0],),
            model=given.model_name,
            id=given.id or None,
            binary=bool(given.raw_input_contents),
            fields=task.text_fields if len(task.text_fields) > 1 else (),
        )

    def _response(self, request: InferRequest, answers: Sequence[Any]) -> Any:
        """The answer, as binary data where the request's tensors were."""
        documents = [encode(answer) for answer in answers]
        response = message("ModelInferResponse")(model_name=self.name, model_version=VERSION, id=request.id or "")
        output = response.outputs.add(name=OUTPUT, datatype="BYTES", shape=[len(documents), 1])
        if request.binary:
            response.raw_output_contents.append(packed(documents))
        else:
            output.contents.bytes_contents.extend(documents)
        return response


class Streamed(Infer):
    """One message of `inference.GRPCInferenceService/ModelStreamInfer` (stream.py): every answer, an error too, is a
    ModelStreamInferResponse. A task that streams answers with one for each token, as its server-sent events are.
    """

    def read(self, body: bytes, headers: Mapping[str, str]) -> InferRequest:
        given = decoded("ModelInferRequest", body)
        parameters = _parameters(given.parameters)
        empty_final = parameters.pop(EMPTY_FINAL, False) is True
        request, streams = self._request(given, parameters), TASKS[self.pipeline.task].streams
        if streams and len(request.inputs) > 1:
            raise InvalidInputError(f"has {len(request.inputs)} elements; allowed in a stream: 1", request.input_path)
        return StreamedRequest(**vars(request) | {"stream": streams, "empty_final": empty_final})

    def write(self, request: Any, answers: Sequence[Any]) -> Reply:
        return Reply(self._streamed(request, answers, is_last=True))

    async def stream(self, request: Any, events: AsyncGenerator[tuple[int, Any], None]) -> AsyncGenerator[Any, None]:
        async with aclosing(events):
            async for _, event in events:
                is_last = event["generated_text"] is not None and not request.empty_final
                yield self._streamed(request, [event], is_last)
        if request.empty_final:
            empty = message("ModelInferResponse")(model_name=self.name, model_version=VERSION, id=request.id or "")
            empty.parameters[FINAL].bool_param = True
            yield message("ModelStreamInferResponse")(infer_response=empty).SerializeToString()

    def failure(self, failure: Failure) -> bytes:
        told: bytes = message("ModelStreamInferResponse")(error_message=self._named(failure).error).SerializeToString()
        return told

    def _streamed(self, request: Any, answers: Sequence[Any], is_last: bool) -> bytes:
        response = self._response(request, answers)
        response.parameters[FINAL].bool_param = is_last
        answer: bytes = message("ModelStreamInferResponse")(infer_response=response).SerializeToString()
        return answer


def of_request(answer: bytes, request: bytes) -> bytes:
    """An answer that tells of an error, with the id of the message that it answers; others are returned as they are."""
    if not answer.startswith(b"\x0a"):  # the tag of the field error_message
        return answer
    told = decoded("ModelStreamInferResponse", answer)
    try:
        asked = decoded("ModelInferRequest", request)
    except InvalidInputError:
        return answer
    told.infer_response.id, told.infer_response.model_name = asked.id, asked.model_name
    with_id: bytes = told.SerializeToString()
    return with_id


def _columns(given: Any) -> dict[str, list[str]]:
    """The texts of each input tensor, by its name."""
    require(len(given.inputs) <= MAX_TENSORS, ("inputs",), f"{len(given.inputs)} tensors", f"at most {MAX_TENSORS}")
    require(len(given.inputs) > 0, ("inputs",), "empty", f"1 to {MAX_TENSORS} tensors")
    raw = list(given.raw_input_contents)
    if raw and len(raw) != len(given.inputs):
        problem = f"has {len(raw)} elements; allowed: {len(given.inputs)}, one for each of inputs"
        raise InvalidInputError(problem, ("raw_input_contents",))
    columns = {}
    for index, tensor in enumerate(given.inputs):
        path = ("inputs", index)
        described: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
        if raw:
            described["parameters"] = {"binary_data_size": len(raw[index])}
        else:
            described["data"] = _texts(tensor.contents.bytes_contents, path)
        read, left = convert(described, ByteTensor, path).read(memoryview(raw[index] if raw else b""), path)
        columns[tensor.name] = read
        assert not len(left)
    return columns


def _texts(contents: Sequence[bytes], path: Path) -> list[str]:
    require(len(contents) <= MAX_INPUTS, (*path, "contents"), f"{len(contents)} elements", f"at most {MAX_INPUTS}")
    texts = []
    for number, one in enumerate(contents):
        try:
            texts.append(one.decode())
        except UnicodeDecodeError:
            raise InvalidInputError("is not UTF-8; allowed: texts in UTF-8", (*path, "contents", number)) from None
    return texts


def _check_outputs(outputs: Sequence[Any]) -> None:
    for index, output in enumerate(outputs):
        path = ("outputs", index)
        require(index == 0, path, "one more output", "one")
        require(output.name == OUTPUT, (*path, "name"), output.name, OUTPUT)
        require(not output.parameters, (*path, "parameters"), sorted(output.parameters), "none")


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name, value in given.items():
        path, chosen = ("parameters", name), value.WhichOneof("parameter_choice")
        found = None if chosen is None else getattr(value, chosen)
        if isinstance(found, float):
            require(math.isfinite(found), path, found, "a finite number")
        if isinstance(found, str) and found[:1] in ("[", "{"):
            try:
                found = read_json(found.encode())
            except InvalidInputError:
                raise InvalidInputError("is no JSON; allowed: a list or an object", path) from None
        parameters[name] = found
    return parameters
