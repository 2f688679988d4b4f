"""Vertex AI's predict route.

    {"instances": [input, ...], "parameters": {...}}  ->  {"predictions": [answer, ...]}

An instance is one input of the Hugging Face task API, a prediction the answer to it, the parameters are the task's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.http.request import decode_json
from deployments.protocols import huggingface
from deployments.protocols.protocol import Protocol, Reply, TaskRequest, json_reply
from pipelines.errors import InvalidInputError
from pipelines.schema import shown

_KEYS = ("instances", "parameters")


class Predictions(Protocol):
    """`POST` at AIP_PREDICT_ROUTE."""

    def read(self, body: bytes, headers: Mapping[str, str]) -> TaskRequest:
        given = decode_json(body)
        if not isinstance(given, Mapping):
            raise InvalidInputError(f"the body is {shown(given)}; allowed: an object with instances")
        for key in given:
            if key not in _KEYS:
                raise InvalidInputError(f"the body has the key {shown(key)}; allowed: {', '.join(_KEYS)}")
        instances = given.get("instances")
        if not isinstance(instances, list):
            found = "missing" if instances is None else shown(instances)
            raise InvalidInputError(f"instances is {found}; allowed: a list of inputs")
        try:
            return huggingface.read(self.pipeline.task, {"inputs": instances, "parameters": given.get("parameters")})
        except InvalidInputError as error:
            raise _renamed(error) from None

    def write(self, request: TaskRequest, answers: Sequence[Any]) -> Reply:
        return json_reply({"predictions": list(answers)})

    def named(self, error: InvalidInputError, request: TaskRequest, index: int) -> InvalidInputError:
        return _renamed(huggingface.named(error, request, index))


def _renamed(error: InvalidInputError) -> InvalidInputError:
    """The same error in the words of whoever sent instances."""
    message = str(error)
    if not message.startswith("inputs"):
        return error
    return type(error)(f"instances{message.removeprefix('inputs')}")
