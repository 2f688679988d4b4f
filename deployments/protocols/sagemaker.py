"""Amazon SageMaker's `POST /invocations`: the body and the answers of the Hugging Face task API.

SageMaker hands on three of a caller's headers: the content type, `Accept`, and `X-Amzn-SageMaker-Custom-Attributes`,
an opaque text (a trace id, say) that the caller gets back only from a container that answers with it, as this one does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.cluster.platform import Platform
from deployments.http.errors import NotAcceptableError
from deployments.protocols.huggingface import HuggingFace, answer_types, body_type
from deployments.protocols.protocol import JSON, Mounted, Operation, Reply, TaskRequest
from pipelines.tasks.pipeline import Pipeline
from pipelines.tasks.task import Task

NAME = "sagemaker"
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
            request.inputs,
            request.parameters,
            request.is_list,
            request.stream,
            custom_attributes=headers.get(CUSTOM_ATTRIBUTES),
        )

    def write(self, request: Any, answers: Sequence[Any]) -> Reply:
        reply = super().write(request, answers)
        if request.custom_attributes is None:
            return reply
        return Reply(reply.body, reply.media_type, {CUSTOM_ATTRIBUTES: request.custom_attributes})


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    if platform is None or platform.name != NAME:
        return Mounted()
    return Mounted({platform.predict_route: Invocations(pipeline)}, {platform.health_route: {"status": "ready"}})


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    if platform is None or platform.name != NAME:
        return []
    summary = "A container for SageMaker: a body of its task"
    return [Operation(platform.predict_route, summary, body_type(task), answer_types(task), streams=task.streams)]


def _require_json(accept: str | None, allowed: Sequence[str]) -> None:
    wanted = [one.split(";")[0].strip().lower() for one in (accept or "").split(",")]
    if any(wanted) and not set(wanted) & set(allowed):
        raise NotAcceptableError(f"accept is {accept!r}; allowed: {JSON}")
