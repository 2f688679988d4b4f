"""What every task, protocol and gateway route needs of an HTTP request and of the times in its response.

    Route.of(request)           where it goes inside the application; made once per request
    deadline_of(request)        x-request-timeout-seconds as a time of the event loop's clock
    read_body(request, limit)   the body, bounded in size and time, declared as JSON or as a protocol's own media type
    Timings                     the x-... headers of every response
    Observer                    what metrics, logs and traces are told, once a request or a batch has ended
    waited_s(scope)             how long it had been here before a handler ran, by the ingress's time stamp
    load_header(...)            what a replica tells the ingress with every answer

    x-request-start: 1764440000123 3e2a...    milliseconds since 1970, and the boot id of the machine whose clock it is

A request waits in HAProxy, in sockets and in Ray Serve before the handler of a replica runs. Its deadline begins before
all of that. HAProxy replaces a client's own stamp (deployments/ingress/overload.py). Where a client can reach a server
of Ray Serve directly, a false stamp shortens its own deadline and does nothing else.

Ray Serve adds `x-request-id` to every response (the client's own, else a new one).
"""

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from deployments.config import TaskConfig
from deployments.http.errors import (
    BodyTooLargeError,
    Failure,
    MethodNotAllowedError,
    UnsupportedMediaTypeError,
)
from deployments.http.receiving import RECEIVING, STALLED, Arriving
from pipelines.errors import DeadlineExceededError, InvalidInputError, OverloadedError
from pipelines.runtime.artifact import AdapterFacts
from pipelines.scheduling.scheduler import BatchReport, Completed, Scheduler

JSON = ("application/json",)
DEADLINE_HEADER = "x-request-timeout-seconds"
HIDDEN_DEADLINE_HEADER = "x-sextet-timeout-seconds"
"""The same header behind middleware.py, which renames it: Ray Serve would act on the first name."""
OWN_HEADERS = "x-sextet-"
"""How the names of headers begin that only the ingress may set; it drops those of clients."""
CLIENT_HEADER = "x-sextet-client"
"""The name of the key that the request came with."""
CLASS_HEADER = "x-sextet-class"
"""The key's class: interactive or bulk."""
TASKS_HEADER = "x-sextet-tasks"
"""The tasks of a key that is not for all: |translation|summarization|."""
BULK = "bulk"
BACKGROUND = "u=7"
"""The lowest urgency of the header `priority` (RFC 9218): a client gives way of its own accord."""
OTHERS_HEADER = "x-sextet-models"
"""The names of a task's other models, for its default: deployments/ingress/model_rules."""
DRAWN_HEADER = "x-sextet-drawn"
"""The task of which a model answers this request as one of its share of them."""
MODEL_HEADER = "x-model"
"""The name of the model that a client wants, of several of a task."""
SECRET_HEADER = "x-sextet-ingress"
"""What replicas know an ingress of their own cluster by."""
_PUBLIC, _HIDDEN = DEADLINE_HEADER.encode(), HIDDEN_DEADLINE_HEADER.encode()
_BROWSERS = frozenset((b"origin", b"sec-fetch-site"))  # headers that a browser adds to a body that a page sends
BODY_S = 60.0
"""How long a client may take to send its body, unless the ingress says otherwise in the header BODY_HEADER."""
BODY_HEADER = "x-sextet-body-timeout-seconds"
HEAD_START_S = 0.02
"""Where Ray Serve sees the deadline header, it answers in plain text at the deadline. The task answers earlier."""
DISCARDED_BODIES = 16
"""A body above the limit is read and discarded up to this many times the limit. A client that is still sending when the
connection closes would see a broken connection instead of the 413."""
START_HEADER = "x-request-start"
LOAD_HEADER = "x-sextet-load"
_START = START_HEADER.encode()
FOREIGN_SHARE = 0.5
"""Of a request's time that the clock of another machine may take at most: it may differ from this one's."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def is_bulk(headers: Mapping[str, str]) -> bool:
    """Whether a request runs when no others wait: its key says so, or it does itself."""
    return headers.get(CLASS_HEADER) == BULK or BACKGROUND in headers.get("priority", "").replace(" ", "").split(",")


def may_ask(headers: Mapping[str, str], task: str) -> bool:
    """Whether the key of a request is for `task`: the gateway has all of them. Before a task the ingress asks."""
    tasks = headers.get(TASKS_HEADER)
    return tasks is None or f"|{task}|" in tasks


@dataclass(frozen=True)
class Route:
    """Where a request goes inside its application.

    `path` is `/` for the application itself, with or without a trailing slash, else the path below the application's
    prefix. `url_path` is the path that the client asked for, for error messages.
    """

    method: str
    path: str
    url_path: str

    @classmethod
    def of(cls, request: Request) -> "Route":
        scope = request.scope
        below: str = scope["path"].removeprefix(scope.get("root_path", ""))
        return cls(scope["method"], "/" + below.strip("/"), scope["path"])

    def require_method(self, allow: str) -> None:
        """Raise MethodNotAllowedError unless the method is in the comma-separated `allow`."""
        if self.method not in allow.split(", "):
            raise MethodNotAllowedError(f"{self.method} is not allowed at {self.url_path}; allowed: {allow}", allow)


@dataclass
class Timings:
    """Where the time of one request went, which tokens the model read and wrote, without padding, and what came of it.

    `protocol` is that of its path, `failure` None for an answer, `adapter` the one that answers, None for none.
    `batches` are the numbers of those that its rows were in, `trace` is what traces keep of it. Of a generator,
    `first_token_s` is the time to the first token, streamed or not, and of a stream `gaps_s` are the times between two
    tokens of one row.
    """

    started_at: float = field(default_factory=time.perf_counter)
    queue_s: float = 0.0
    tokenization_s: float = 0.0
    tokenized_at: float | None = None
    inference_s: float = 0.0
    read_tokens: int = 0
    written_tokens: int = 0
    first_token_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    protocol: object = None
    adapter: AdapterFacts | None = None
    failure: Failure | None = None
    batches: tuple[int, ...] = ()
    trace: Any = None
    _token_at: dict[int, float] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        """Whether tokens of a stream have come."""
        return bool(self._token_at)

    def token(self, row: int) -> None:
        """A token of a stream has come."""
        now = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now - self.started_at
        if row in self._token_at:
            self.gaps_s.append(now - self._token_at[row])
        self._token_at[row] = now

    def ran(self, completed: Completed[Any]) -> None:
        """The model has answered it."""
        self.queue_s, self.inference_s = completed.queue_s, completed.inference_s
        self.read_tokens, self.written_tokens = completed.read_tokens, completed.written_tokens
        self.batches = completed.batches
        if completed.first_token_at is not None:
            self.first_token_s = completed.first_token_at - self.started_at

    def total_s(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self.started_at

    def headers(self) -> list[tuple[bytes, bytes]]:
        """ASGI headers; times in milliseconds. `x-total-time` ends now."""
        return [
            (b"x-queue-time", _ms(self.queue_s)),
            (b"x-tokenization-time", _ms(self.tokenization_s)),
            (b"x-inference-time", _ms(self.inference_s)),
            (b"x-total-time", _ms(self.total_s())),
            (b"x-compute-tokens", b"%d" % (self.read_tokens + self.written_tokens)),
        ]


class Observer:
    """Is told what one loaded model does. This one keeps nothing; others (deployments/observability) count and log.

    The methods run on the event loop: they take microseconds and raise nothing.
    """

    def started(self, scheduler: Scheduler[Any, Any], seconds: Mapping[str, float]) -> None:
        """The model is warm; `seconds` are those of each part of its start."""

    def configured(self, config: TaskConfig) -> None:
        """What holds from now on; the model may be the same."""

    def batch(self, report: BatchReport) -> None:
        """A batch has ended."""

    def request(self, request: Request, timings: Timings) -> None:
        """A request has ended, a stream with its last event."""

    def headers(self, request: Request, timings: Timings) -> Sequence[tuple[bytes, bytes]]:
        """What it adds to the head of an answer."""
        return ()

    def ended(self) -> None:
        """The model has answered its last request."""

    def statistics(self) -> dict[str, float]:
        """What it has counted: numbers that may be added to those of other replicas (observability/statistics.py)."""
        return {}

    def signals(self) -> Mapping[str, float]:
        """What autoscaling is told, by name; asked once a second."""
        return {}


def cache_salt(config: TaskConfig, headers: Mapping[str, str]) -> str:
    """What keeps the prefixes of a request apart from those of other callers; "" where callers share them."""
    per_key = config.slots is not None and config.slots.prefix_cache == "per_key"
    return headers.get(CLIENT_HEADER, "") if per_key else ""


@cache
def clock() -> str:
    """Names the clock of this machine: two processes with the same name read the same clock, in containers too."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def waited_s(scope: Scope, timeout_s: float = math.inf) -> float:
    """Seconds since the ingress had read the head, of the `timeout_s` that a client gives; 0.0 where no ingress said.

    A stamp of the future counts as now. One of another machine counts up to half of `timeout_s`.
    """
    given = next((value for name, value in scope["headers"] if name == _START), b"").split()
    if len(given) != 2 or not given[0].isdigit() or len(given[0]) > 15:
        return 0.0
    elapsed_s = max(0.0, time.time() - int(given[0]) / 1000)
    return min(elapsed_s, timeout_s if given[1].decode("latin-1") == clock() else FOREIGN_SHARE * timeout_s)


def load_header(expected_s: float, max_queue_s: float, row_s: float) -> tuple[bytes, bytes]:
    """What a replica tells the ingress with every answer, which refuses by it and removes it: how long the smallest
    request would take that arrived now (ms), how long one without a deadline may wait (ms), and by how long each
    request inside delays it at least (us).
    """
    return LOAD_HEADER.encode(), b"%d/%d/%d" % (1e3 * expected_s, 1e3 * max_queue_s, 1e6 * row_s)


def deadline_of(request: Request) -> float | None:
    """When the client stops waiting; None for never. Raises InvalidInputError for a header that is not a time.

    The time begins when the ingress had read the head of the request.
    """
    headers = dict(request.scope["headers"])
    hidden, public = headers.get(_HIDDEN), headers.get(_PUBLIC)
    if hidden is None and public is None:
        return None
    given = (public if hidden is None else hidden).decode("latin-1")  # type: ignore[union-attr]
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise InvalidInputError(f"{DEADLINE_HEADER} is {given!r}; allowed: a number of seconds above 0")
    head_start_s = min(HEAD_START_S, timeout_s / 2) if hidden is None else 0.0
    left_s = timeout_s - head_start_s - waited_s(request.scope, timeout_s)
    return asyncio.get_running_loop().time() + left_s


async def read_body(request: Request, max_bytes: int, media_types: Sequence[str] = JSON) -> bytes:
    """The body's bytes, declared as one of `media_types`, or as a kind of JSON.

    Raises UnsupportedMediaTypeError, BodyTooLargeError, DeadlineExceededError after BODY_S, and OverloadedError where
    bodies that are not complete hold too much memory.
    """
    headers = dict(request.scope["headers"])
    _require_declared(headers, media_types)
    limit_s, arriving = BODY_S, None
    try:
        async with asyncio.timeout(limit_s) as timeout:
            body, has_more = await _receive(request)
            if has_more:  # what came with its head costs nothing of this
                limit_s = _limit_s(headers)
                timeout.reschedule(asyncio.get_running_loop().time() + limit_s - waited_s(request.scope, limit_s))
                arriving = Arriving(timeout)
                return await _read_rest(request, arriving, body, max_bytes)
    except TimeoutError:
        if arriving is not None and arriving.is_refused:
            raise OverloadedError(STALLED, retry_after_s=5.0, reason="large_bodies") from None
        n_bytes = 0 if arriving is None else arriving.n_received
        raise DeadlineExceededError(f"the body was not complete after {limit_s:.0f} s; {n_bytes} bytes came") from None
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


async def _read_rest(request: Request, arriving: Arriving, begun: bytes, max_bytes: int) -> bytes:
    """All of a body that began so."""
    body, has_more, arriving.n_received = bytearray(begun), True, len(begun)
    try:
        while has_more and arriving.n_received <= DISCARDED_BODIES * max_bytes:
            RECEIVING.grown(arriving, len(body), max_bytes)
            chunk, has_more = await _receive(request)
            arriving.n_received += len(chunk)
            if arriving.n_received <= max_bytes:
                body += chunk
            else:
                body.clear()
    finally:
        RECEIVING.left(arriving)
    if arriving.n_received > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


def _limit_s(headers: Mapping[bytes, bytes]) -> float:
    given = headers.get(BODY_HEADER.encode(), b"")
    return float(given) if given.isdigit() and len(given) < 6 else BODY_S


async def _receive(request: Request) -> tuple[bytes, bool]:
    """What has come of the body, and whether there is more of it."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise asyncio.CancelledError
    return message.get("body", b""), message.get("more_body", False)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body has more than {max_bytes} bytes; allowed: at most {max_bytes} bytes")


def _require_declared(headers: Mapping[bytes, bytes], media_types: Sequence[str]) -> None:
    """A page in a browser can send a body of no declared type, or of a form's, to any server, without asking first.

    Programs may declare none: Triton's client does so. A browser says with such a body whose page sends it.
    """
    declared = headers.get(b"content-type", b"").decode("latin-1")
    media_type = declared.split(";")[0].strip().lower()
    undeclared = b"content-type" not in headers and not _BROWSERS.intersection(headers)
    if not (undeclared or media_type in media_types or re.fullmatch(r"application/[^/]+\+json", media_type)):
        given = f"is {media_type!r}" if media_type else "is missing"
        raise UnsupportedMediaTypeError(f"the content-type {given}; allowed: {', '.join(media_types)}")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"the content-encoding is {encoding!r}; allowed: identity (no compression)")


def _ms(seconds: float) -> bytes:
    return b"%.3f" % (seconds * 1000)
