"""Limits: what clients may hold before a request of theirs is read as a whole, and what they are told beyond it."""

import resource

from deployments.http.errors import BodyTooLargeError, Failure, ForbiddenError, MethodNotAllowedError, UnavailableError
from deployments.http.request import BODY_HEADER, BODY_S
from deployments.ingress.access import LOOPBACK
from deployments.ingress.config import ConnectionLimits
from deployments.ingress.lines import APPLICATION, BACKEND, Lines
from deployments.ingress.refusals import ANY, NO_STATUS, TRACK, counted, counter
from pipelines.errors import DeadlineExceededError, GenerationError, InvalidInputError, OverloadedError

QUEUE_S = 5
"""How long a request waits in HAProxy for a place in Ray Serve's fallback proxy (rewrite.py), and is told to come back:
HAProxy does not know a request's deadline while it waits."""
SPARE_FILES = 2_048  # connections to replicas, health checks and HAProxy's own
UNAVAILABLE = UnavailableError("no replica of this task answers now; it is being replaced", retry_after_s=5.0)
PAGES: dict[int, tuple[str, Exception]] = {
    400: ("http", InvalidInputError("this is not HTTP, or its head has more bytes than fit")),
    403: ("forbidden", ForbiddenError("this request is not allowed")),
    413: ("body", BodyTooLargeError("the body has more bytes than allowed")),
    429: ("overloaded", OverloadedError("too many requests", retry_after_s=1.0)),
    500: ("internal", GenerationError("the ingress failed on this request")),
    501: ("method", MethodNotAllowedError("this kind of request is not known here", "GET, HEAD, POST")),
    502: ("replica_lost", UNAVAILABLE),
    503: ("no_replica", UNAVAILABLE),
    504: ("replica_silent", UNAVAILABLE),
}
"""What HAProxy answers by itself, and the reason, by the status that it answers with."""
OF_REPLICAS = (400, 408, 500, 502, 503, 504)
"""Of them, those that it may answer once it knows whom to ask."""
TOLD = {502: 503, 504: 503}
"""What clients are told instead: that the same request may succeed elsewhere, or later."""
TABLE = "sextet_addresses"
CLOSING = (400, 408, 413)  # the rest of such a request may still come


def connections(config: ConnectionLimits) -> Lines:
    """Those of one client, which are refused before they hold anything."""
    of_one_client = config.max_connections_per_client or max(1, config.max_connections // 10)
    elsewhere = "" if config.max_connections_per_client else f" !{{ dst {LOOPBACK} }}"
    too_many = f"{{ sc1_conn_cur({TABLE}) gt {of_one_client} }}{elsewhere}"
    return Lines(
        frontend=(
            TRACK,
            # Whoever has one address of IPv6 has the 2^64 of its network.
            f"tcp-request connection track-sc1 src,ipmask(32,64) table {TABLE} if {{ src -m found }}",
            f"tcp-request connection set-var(sess.sextet_counted) {counter(NO_STATUS, 'connections')} if {too_many}",
            f"tcp-request connection reject if {too_many}",
        ),
        sections=(f"backend {TABLE}\n    stick-table type ipv6 size 100k expire 60s store conn_cur",),
    )


def limits(config: ConnectionLimits) -> Lines:
    """The lines of `config`."""
    late = DeadlineExceededError(f"the request was not complete after {config.body_timeout_s} s")
    pages = {**PAGES, 408: ("timeout", late)}
    return Lines(
        process=(
            f"maxconn {max_connections(config)}",
            "no strict-limits",  # HAProxy wants two files for each of them: the second only while it asks a replica
        ),
        defaults=(
            f"timeout http-request {config.head_timeout_s}s",
            f"timeout http-keep-alive {config.idle_timeout_s}s",
            f"timeout queue {QUEUE_S}s",
            *(f"http-error status {status} {page(status, *one)}" for status, one in pages.items()),
            # A browser connects ahead of its next request, and would take a 408 that nobody asked for as its answer.
            "option http-ignore-probes",
            # A machine that loses power closes no connection. After 25 s without a sign of life, another one is asked.
            "option srvtcpka",
            "srvtcpka-idle 10s",
            "srvtcpka-intvl 5s",
            "srvtcpka-cnt 3",
        ),
        absent=(f"http-request return status 503 {page(503, *PAGES[503], APPLICATION)}",),
        backend=(
            *(f"http-error status {status} {page(status, *pages[status], BACKEND)}" for status in OF_REPLICAS),
            *(f"http-after-response set-status {told} if {{ status {status} }}" for status, told in TOLD.items()),
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


def page(status: int, reason: str, error: Exception, application: str = ANY) -> str:
    """The answer with `status` to a request that fails with `error`, for `http-error` and `http-request return`."""
    failure = Failure.of(error)
    closing = {"connection": "close"} if status in CLOSING else {}
    headers = {"cache-control": "no-store", **failure.headers, **closing}
    arguments = " ".join(f"hdr {name} '{value}'" for name, value in headers.items())
    answer = f"content-type application/json {arguments} string '{failure.body().decode()}'"
    return f"{answer} {counted(TOLD.get(status, status), reason, application)}"
