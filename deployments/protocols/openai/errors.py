"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import re

import orjson

from deployments.http.errors import Failure

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 408: "timeout", 429: "rate_limit_error"}
_FIELD = re.compile(r"(?:parameters\.)?([a-z_]+(?:\[\d+\]|\.[a-z_]+)*) (?:is|has|lacks|cannot) ")


def failure_body(failure: Failure, message: str | None = None) -> bytes:
    """A failure in OpenAI's shape; `param` is the field that the message begins with."""
    message = failure.error if message is None else message
    is_client = 400 <= failure.status < 500
    kind = _TYPES.get(failure.status, "invalid_request_error" if is_client else "server_error")
    found = _FIELD.match(message) if is_client else None
    code = None if failure.error_type == "validation" else failure.error_type
    error = {"message": message, "type": kind, "param": found[1] if found else None, "code": code}
    return orjson.dumps({"error": error})
