"""Amazon SageMaker's `POST /invocations`: the body and the answers of the Hugging Face task API.

SageMaker hands on three of a caller's headers: the content type, `Accept`, and `X-Amzn-SageMaker-Custom-Attributes`,
an opaque text (a trace id, say) that the caller gets back only from a container that answers with it, as this one does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.http.errors import NotAcceptableError
from deployments.protocols.huggingface import HuggingFace
from deployments.protocols.protocol import JSON, Reply, TaskRequest

CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_ACCEPTED = (JSON, "application/*", "*/*")
_EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Invocation(TaskRequest):
    """A request, and the custom attributes that came with it."""

    custom_attributes: str | None = None


class Invocations(HuggingFace):
    """`POST /invocations`."""

    def read(self, body: bytes, headers: Mapping[str, str]) -> Invocation:
        """Raises NotAcceptableError too, where the caller wants something else than JSON."""
        request = super().read(body, headers)
        _require_json(headers.get("accept"), (*_ACCEPTED, _EVENTS) if request.stream else _ACCEPTED)
        return Invocation(
            request.inputs, request.is_list, request.parameters, request.stream, headers.get(CUSTOM_ATTRIBUTES)
        )

    def write(self, request: Any, answers: Sequence[Any]) -> Reply:
        reply = super().write(request, answers)
        if request.custom_attributes is None:
            return reply
        return Reply(reply.body, reply.media_type, {CUSTOM_ATTRIBUTES: request.custom_attributes})


def _require_json(accept: str | None, allowed: Sequence[str]) -> None:
    wanted = [one.split(";")[0].strip().lower() for one in (accept or "").split(",")]
    if any(wanted) and not set(wanted) & set(allowed):
        raise NotAcceptableError(f"accept is {accept!r}; allowed: {JSON}")
