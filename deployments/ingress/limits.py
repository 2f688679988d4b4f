"""Limits: what clients may hold before a request of theirs is read as a whole, and what they are told beyond it."""

import resource
from http import HTTPStatus
from pathlib import Path

from deployments.http.errors import BodyTooLargeError, Failure, ForbiddenError, MethodNotAllowedError, UnavailableError
from deployments.http.request import BODY_HEADER, BODY_S
from deployments.ingress.access import LOOPBACK
from deployments.ingress.config import ConnectionLimits
from deployments.ingress.lines import Lines
from pipelines.errors import DeadlineExceededError, GenerationError, InvalidInputError, OverloadedError

SPARE_FILES = 2_048  # connections to replicas, health checks and HAProxy's own
UNAVAILABLE = UnavailableError("no replica of this task answers now; it is being replaced", retry_after_s=5.0)
PAGES: dict[int, Exception] = {
    400: InvalidInputError("this is not HTTP, or its head has more bytes than fit"),
    403: ForbiddenError("this request is not allowed"),
    413: BodyTooLargeError("the body has more bytes than allowed"),
    429: OverloadedError("too many requests", retry_after_s=1.0),
    500: GenerationError("the ingress failed on this request"),
    501: MethodNotAllowedError("this kind of request is not known here", "GET, HEAD, POST"),
    **dict.fromkeys((502, 503, 504), UNAVAILABLE),
}
"""What HAProxy answers by itself, by the status that it would answer with."""
TABLE = "sextet_addresses"
CLOSING = (400, 408, 413)  # the rest of such a request may still come


def connections(config: ConnectionLimits) -> Lines:
    """Those of one client, which are refused before they hold anything."""
    of_one_client = config.max_connections_per_client or max(1, config.max_connections // 10)
    elsewhere = "" if config.max_connections_per_client else f" !{{ dst {LOOPBACK} }}"
    return Lines(
        frontend=(
            # Whoever has one address of IPv6 has the 2^64 of its network.
            f"tcp-request connection track-sc1 src,ipmask(32,64) table {TABLE} if {{ src -m found }}",
            f"tcp-request connection reject if {{ sc1_conn_cur({TABLE}) gt {of_one_client} }}{elsewhere}",
        ),
        sections=(f"backend {TABLE}\n    stick-table type ipv6 size 100k expire 60s store conn_cur",),
    )


def limits(config: ConnectionLimits, folder: Path) -> Lines:
    """The lines of `config`. The pages that HAProxy answers with by itself are put into `folder`."""
    late = DeadlineExceededError(f"the request was not complete after {config.body_timeout_s} s")
    return Lines(
        process=(
            f"maxconn {max_connections(config)}",
            "no strict-limits",  # HAProxy wants two files for each of them: the second only while it asks a replica
        ),
        defaults=(
            f"timeout http-request {config.head_timeout_s}s",
            f"timeout http-keep-alive {config.idle_timeout_s}s",
            *(f'errorfile {status} "{page(folder, str(status), error)}"' for status, error in PAGES.items()),
            f'errorfile 408 "{page(folder, "408", late)}"',
            # A browser connects ahead of its next request, and would take a 408 that nobody asked for as its answer.
            "option http-ignore-probes",
            # A machine that loses power closes no connection. After 25 s without a sign of life, another one is asked.
            "option srvtcpka",
            "srvtcpka-idle 10s",
            "srvtcpka-intvl 5s",
            "srvtcpka-cnt 3",
        ),
        backend=(
            # HAProxy can only repeat a request that it holds as a whole. It therefore waits for all of it, as far as
            # its buffer goes, before it asks a replica, and repeats it where that replica dies. It does so here, behind
            # the rules of the frontend: who is refused there sends no body.
            f"http-request wait-for-body time {config.body_timeout_s}s",
            *body_timeout(config),
        ),
    )


def body_timeout(config: ConnectionLimits) -> tuple[str, ...]:
    """What a replica is told, which reads what the buffer does not hold, unless it knows."""
    is_known = config.body_timeout_s == BODY_S
    return () if is_known else (f"http-request set-header {BODY_HEADER} {config.body_timeout_s}",)


def max_connections(config: ConnectionLimits) -> int:
    """Those of `config`, as far as this process and those that it starts may open files."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return config.max_connections
    return max(1, min(config.max_connections, max(files - SPARE_FILES, files // 2)))


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
