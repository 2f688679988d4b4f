"""Limits: what clients may hold before a request of theirs is read as a whole, and what they are told beyond it."""

import resource
from pathlib import Path

from deployments.http.errors import UnavailableError
from deployments.ingress.config import ConnectionLimits
from deployments.ingress.pages import page
from deployments.ingress.rewrite import Lines
from pipelines.errors import DeadlineExceededError

SPARE_FILES = 2_048  # connections to replicas, health checks and HAProxy's own
UNAVAILABLE = UnavailableError("no replica of this task answers now; it is being replaced", retry_after_s=5.0)


def limits(config: ConnectionLimits, folder: Path) -> Lines:
    """The lines of `config`. The pages that HAProxy answers with by itself are put into `folder`."""
    late = DeadlineExceededError(f"the request was not complete after {config.body_timeout_s} s")
    pages = dict.fromkeys((502, 503, 504), UNAVAILABLE) | {408: late}
    return Lines(
        process=(
            f"maxconn {max_connections(config)}",
            "no strict-limits",  # HAProxy wants two files for each of them: the second only while it asks a replica
        ),
        defaults=(
            # HAProxy can only repeat a request that it holds as a whole. It therefore waits for all of it, as far as
            # its buffer goes, before it asks a replica, and repeats it where that replica dies.
            "option http-buffer-request",
            f"timeout http-request {config.body_timeout_s}s",
            *(f'errorfile {status} "{page(folder, str(status), error)}"' for status, error in sorted(pages.items())),
            # A machine that loses power closes no connection. After 25 s without a sign of life, another one is asked.
            "option srvtcpka",
            "srvtcpka-idle 10s",
            "srvtcpka-intvl 5s",
            "srvtcpka-cnt 3",
        ),
    )


def max_connections(config: ConnectionLimits) -> int:
    """Those of `config`, as far as this process and those that it starts may open files."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return config.max_connections
    return max(1, min(config.max_connections, max(files - SPARE_FILES, files // 2)))
