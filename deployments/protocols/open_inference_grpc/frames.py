"""Frames: how gRPC sends messages over HTTP. A byte that says whether it is compressed, four of length, the message.

a replica     HTTP/1.1 200, chunked: frames, and trailers with `grpc-status`
HAProxy       the same over HTTP/2; any other status of a replica becomes one of gRPC (deployments/ingress/grpc)
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.http.errors import BodyTooLargeError
from deployments.protocols.protocol import Reply
from pipelines.errors import InvalidInputError

MEDIA_TYPE = "application/grpc"
MEDIA_TYPES = (MEDIA_TYPE, f"{MEDIA_TYPE}+proto")
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE = 0, 3, 8, 14
_HEAD = struct.Struct(">BI")


def framed(message: bytes) -> bytes:
    return _HEAD.pack(0, len(message)) + message


def first(data: bytes | bytearray, most_bytes: int) -> tuple[bytes, int] | None:
    """The first message of `data` and where it ends; None where it is not complete.

    Raises BodyTooLargeError as soon as its length is known to be above `most_bytes`, InvalidInputError for a compressed
    one.
    """
    if len(data) < _HEAD.size:
        return None
    is_compressed, length = _HEAD.unpack_from(data)
    if is_compressed:
        raise InvalidInputError("the message is compressed; allowed: grpc-encoding identity")
    if length > most_bytes:
        raise BodyTooLargeError(f"the message has {length} bytes; allowed: at most {most_bytes} bytes")
    end = _HEAD.size + length
    return (bytes(data[_HEAD.size : end]), end) if len(data) >= end else None


def only(body: bytes) -> bytes:
    """The message of a body that has to hold one; raises InvalidInputError."""
    found = first(body, len(body))
    if found is None:
        raise InvalidInputError("the body ends inside its message; allowed: one whole message")
    message, end = found
    if end != len(body):
        raise InvalidInputError(f"the body has {len(body) - end} bytes behind its message; allowed: none")
    return message


def trailers(status: int, message: str = "") -> list[tuple[bytes, bytes]]:
    """Those that end an answer. The message is percent-encoded, as gRPC has it."""
    found = [(b"grpc-status", b"%d" % status)]
    return [*found, (b"grpc-message", quote(message, safe=" ").encode())] if message else found


class GrpcResponse(Response):
    """One message, and that all went well."""

    def __init__(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(framed(body), headers=headers, media_type=MEDIA_TYPE)
        del self.headers["content-length"]  # trailers follow a chunked body alone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send(last(bytes(self.body)))


@dataclass(frozen=True)
class GrpcReply(Reply):
    """A message as the answer."""

    def response(self) -> Response:
        return GrpcResponse(self.body, self.headers or None)


def last(body: bytes, status: int = OK, message: str = "") -> dict[str, Any]:
    """The end of a body, with the trailers, which deployments/http/one_write.py writes."""
    return {"type": "http.response.body", "body": body, "more_body": False, "trailers": trailers(status, message)}
