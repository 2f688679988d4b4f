"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from deployments.http.errors import Failure
from pipelines.errors import place
from pipelines.schema import encode

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 408: "timeout", 429: "rate_limit_error"}


def failure_body(failure: Failure) -> bytes:
    """A failure in OpenAI's shape; `param` is the field that has to change."""
    is_client = 400 <= failure.status < 500
    kind = _TYPES.get(failure.status, "invalid_request_error" if is_client else "server_error")
    path = failure.cause.path if failure.cause else None
    code = None if failure.error_type == "validation" else failure.error_type
    error = {"message": failure.error, "type": kind, "param": place(path) if path else None, "code": code}
    return encode({"error": error})
