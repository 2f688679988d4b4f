"""Exceptions to HTTP, in one table. An exception that is not in it is a bug: it is logged with its traceback, as a 500.

{"error": "<what, where, what is allowed>", "error_type": "validation" | "overloaded" | ...}
"""

import logging
import math
import traceback
from dataclasses import dataclass, field

from starlette.responses import Response

from pipelines.errors import (
    DeadlineExceededError,
    GenerationError,
    InputTooLongError,
    InvalidInputError,
    OverloadedError,
    SextetError,
)
from pipelines.schema import encode

logger = logging.getLogger("ray.serve")  # Ray Serve's own: it writes to the replica's log file


class RouteNotFoundError(SextetError):
    """No such path."""


class MovedError(SextetError):
    """The request has to be repeated at `location`, a path of this cluster."""

    def __init__(self, message: str, location: str) -> None:
        super().__init__(message, location)
        self.location = location


class MethodNotAllowedError(SextetError):
    """The path does not take this method; `allow` becomes the header of that name."""

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message, allow)
        self.allow = allow


class UnauthorizedError(SextetError):
    """The request has no key, or one that is not known."""


class ForbiddenError(SextetError):
    """Who asks may not ask this."""


class MisdirectedError(SextetError):
    """The name in the Host header is not one of this cluster's."""


class HeadersTooLargeError(SextetError):
    """The headers have more bytes than allowed."""


class UnsupportedMediaTypeError(SextetError):
    """The content-type or content-encoding is not one that the path takes."""


class NotAcceptableError(SextetError):
    """The client accepts no media type that the path can answer with."""


class BodyTooLargeError(InvalidInputError):
    """The request has more bytes, inputs, characters or sequences than allowed."""


class UnavailableError(OverloadedError):
    """No replica can answer now; `retry_after_s` says when to ask again."""


STATUSES: dict[type[BaseException], tuple[int, str]] = {
    MovedError: (308, "moved"),
    InvalidInputError: (400, "validation"),
    UnauthorizedError: (401, "unauthorized"),
    ForbiddenError: (403, "unauthorized"),
    RouteNotFoundError: (404, "not_found"),
    MethodNotAllowedError: (405, "validation"),
    NotAcceptableError: (406, "validation"),
    DeadlineExceededError: (408, "timeout"),
    BodyTooLargeError: (413, "validation"),
    UnsupportedMediaTypeError: (415, "validation"),
    MisdirectedError: (421, "unauthorized"),
    InputTooLongError: (422, "validation"),
    OverloadedError: (429, "overloaded"),
    HeadersTooLargeError: (431, "validation"),
    GenerationError: (500, "generation"),
    UnavailableError: (503, "overloaded"),
}
CLIENT_CLOSED_REQUEST = 499
"""As nginx counts requests whose client did not wait for the answer."""
INTERNAL = "the server failed on this request; its log has the reason"


@dataclass(frozen=True)
class Failure:
    """What a client is told about an exception; `cause` is there where it is the client's, and knows the place.

    `reason` is a word for metrics and logs.
    """

    status: int
    error: str
    error_type: str
    headers: dict[str, str] = field(default_factory=dict)
    cause: InvalidInputError | None = None
    reason: str = "internal"

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """The entry of the exception's nearest class in STATUSES. Logs the exception where there is none."""
        for known in type(error).__mro__:
            if known in STATUSES:
                status, error_type = STATUSES[known]
                cause = error if isinstance(error, InvalidInputError) else None
                reason = error.reason if isinstance(error, OverloadedError) else error_type
                return cls(status, str(error), error_type, _headers(error), cause, reason)
        logger.error("request failed\n%s", "".join(traceback.format_exception(error)))
        return cls(500, INTERNAL, "internal")

    def body(self) -> bytes:
        return encode({"error": self.error, "error_type": self.error_type})

    def response(self, body: bytes | None = None) -> Response:
        """The response; `body` replaces the JSON above where a protocol has its own."""
        return Response(self.body() if body is None else body, self.status, self.headers, "application/json")


CLIENT_LEFT = Failure(CLIENT_CLOSED_REQUEST, "the client has left", "cancelled", reason="client_left")
"""Nobody is told it; metrics and logs are."""


def _headers(error: BaseException) -> dict[str, str]:
    if isinstance(error, OverloadedError):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, MovedError):
        return {"location": error.location}
    if isinstance(error, MethodNotAllowedError):
        return {"allow": error.allow}
    return {}
