"""Exchange: one HTTP request while it is answered. What every protocol and route needs of HTTP, and nothing of tasks.

    route_of(request)          the path below the application's prefix, without a trailing slash
    deadline_of(request)       x-request-timeout-seconds as a time of the loop's clock
    read_body(request, limit)  the body's bytes
    Timings                    the x-... headers of every response

Serve itself adds `x-request-id` to every response (the client's own, else a new one), so nothing here does.
"""

import asyncio
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request

from deployments.http import middleware as deadline_header
from deployments.http.errors import BodyTooLargeError, MethodNotAllowedError, UnsupportedMediaTypeError
from pipelines.errors import DeadlineExceededError, InvalidInputError

JSON = ("application/json",)
BODY_S = 60.0
"""How long a client may take to send its body."""
HEAD_START_S = 0.02
"""Where Serve sees the deadline header too, it answers with plain text when that is over: be earlier by this much."""
DISCARDED_BODIES = 16
"""A body above the limit is read to its end and thrown away, up to this many times the limit: a client that is still
sending would see a broken connection instead of the 413."""


@dataclass
class Timings:
    """Where the time of one request went; `compute_tokens` counts the tokens that the model read, without padding."""

    started_at: float = field(default_factory=time.perf_counter)
    queue_s: float = 0.0
    tokenization_s: float = 0.0
    inference_s: float = 0.0
    compute_tokens: int = 0

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As ASGI has them; all times in milliseconds; `x-total-time` ends now."""
        return [
            (b"x-queue-time", _ms(self.queue_s)),
            (b"x-tokenization-time", _ms(self.tokenization_s)),
            (b"x-inference-time", _ms(self.inference_s)),
            (b"x-total-time", _ms(time.perf_counter() - self.started_at)),
            (b"x-compute-tokens", b"%d" % self.compute_tokens),
        ]


def route_of(request: Request) -> str:
    """`/` for the application itself, with or without a trailing slash; else the path below its prefix."""
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return "/" + path.strip("/")


def require_method(request: Request, allow: str) -> None:
    """Raise MethodNotAllowedError unless the method is in the comma-separated `allow`."""
    if request.method not in allow.split(", "):
        raise MethodNotAllowedError(f"{request.method} is not allowed at {request.url.path}; allowed: {allow}", allow)


def deadline_of(request: Request) -> float | None:
    """When the answer is no longer wanted, None for never; raises InvalidInputError for a header that is no time."""
    hidden = request.headers.get(deadline_header.PRIVATE)
    given = request.headers.get(deadline_header.PUBLIC) if hidden is None else hidden
    if given is None:
        return None
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise InvalidInputError(f"{deadline_header.PUBLIC} is {given!r}; allowed: a number of seconds above 0")
    head_start_s = min(HEAD_START_S, timeout_s / 2) if hidden is None else 0.0
    return asyncio.get_running_loop().time() + timeout_s - head_start_s


async def read_body(request: Request, max_bytes: int, media_types: Sequence[str] = JSON) -> bytes:
    """The body's bytes, declared as one of `media_types`, or as a kind of JSON.

    Raises BodyTooLargeError, UnsupportedMediaTypeError, and DeadlineExceededError after BODY_S.
    """
    media_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if media_type not in media_types and not re.fullmatch(r"application/[^/]+\+json", media_type):
        raise UnsupportedMediaTypeError(f"the content-type is {media_type!r}; allowed: {', '.join(media_types)}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"the content-encoding is {encoding!r}; allowed: identity (no compression)")
    return await read_any_body(request, max_bytes)


async def read_any_body(request: Request, max_bytes: int) -> bytes:
    """The body's bytes, whatever they are declared to be; raises BodyTooLargeError, and DeadlineExceededError."""
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                received += len(chunk)
                if received <= max_bytes:
                    body += chunk
                elif received > DISCARDED_BODIES * max_bytes:
                    break
    except ClientDisconnect:
        raise asyncio.CancelledError from None
    except TimeoutError:
        raise DeadlineExceededError(f"the body was not complete after {BODY_S:.0f} s; {received} bytes came") from None
    if received > max_bytes:
        raise BodyTooLargeError(f"the body has more than {max_bytes} bytes; allowed: at most {max_bytes} bytes")
    return bytes(body)


def _ms(seconds: float) -> bytes:
    return b"%.3f" % (seconds * 1000)
