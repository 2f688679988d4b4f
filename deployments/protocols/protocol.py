"""Protocol: how one dialect of HTTP says what is asked of a pipeline, and what it answered. No Ray, no sockets.

    bytes ──read──> TaskRequest ──(the pipeline)──> answers ──write──> Reply
                                └──(token by token)──> events ──stream──> payloads of server-sent events
    an exception ──Failure──> failure ──> bytes

A protocol instance belongs to one loaded model; TaskServer finds it by the path of a request (routes.py).
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from deployments.http.errors import Failure
from pipelines.errors import InvalidInputError
from pipelines.tasks.pipeline import Pipeline

JSON = "application/json"


@dataclass(frozen=True)
class TaskRequest:
    """What a client asks of a task. `is_list` tells how it wants the answers: in a list, or the only one."""

    inputs: list[Any]
    is_list: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False


@dataclass(frozen=True)
class Reply:
    """The body of an answer."""

    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Protocol(ABC):
    """One dialect, at one path, over one `pipeline`: the task's own, or another view of the same model."""

    media_types: tuple[str, ...] = (JSON,)
    """What a body may be declared as."""

    def __init__(self, pipeline: Pipeline[Any, Any, Any, Any]) -> None:
        self.pipeline = pipeline

    @abstractmethod
    def read(self, body: bytes, headers: Mapping[str, str]) -> TaskRequest:
        """Raises InvalidInputError that names the field and what is allowed."""

    @abstractmethod
    def write(self, request: Any, answers: Sequence[Any]) -> Reply:
        """The answers to all inputs of a request that `read` returned, in order."""

    def named(self, error: InvalidInputError, request: Any, index: int) -> InvalidInputError:
        """A pipeline's error about the `index`-th input, in the words of the client."""
        return error

    async def stream(self, request: Any, events: AsyncGenerator[tuple[int, Any], None]) -> AsyncGenerator[Any, None]:
        """The payloads of a stream, JSON or bytes, from events that come with the number of their row."""
        async with aclosing(events):
            async for _, event in events:
                yield event

    def failure(self, failure: Failure) -> bytes:
        """The JSON that tells a client about a failure, as a body or as the last event of a stream."""
        return failure.body()


def json_reply(content: Any) -> Reply:
    return Reply(orjson.dumps(content))
