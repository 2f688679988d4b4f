"""Pages: whole answers in files, which HAProxy gives by itself."""

from http import HTTPStatus
from pathlib import Path

from deployments.http.errors import Failure

CLOSING = (400, 408, 413)  # the rest of such a request may still come


def page(folder: Path, name: str, error: Exception) -> Path:
    """A file in `folder` with the answer to a request that fails with `error`."""
    failure = Failure.of(error)
    body = failure.body()
    headers = {
        "content-type": "application/json",
        "cache-control": "no-store",
        "content-length": str(len(body)),
        **failure.headers,
        **({"connection": "close"} if failure.status in CLOSING else {}),
    }
    head = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    file = folder / f"{name}.http"
    file.write_bytes(f"HTTP/1.1 {failure.status} {HTTPStatus(failure.status).phrase}\r\n{head}\r\n".encode() + body)
    return file
