"""Access: who is answered. The rules of the HTTP frontend for methods, hosts, origins and keys, in this order.

A refusal is JSON in the shape of the protocol whose path was asked. It comes before the body is read.
"""

from collections.abc import Callable, Iterator, Sequence

from deployments.http.errors import (
    Failure,
    ForbiddenError,
    HeadersTooLargeError,
    MethodNotAllowedError,
    MisdirectedError,
    RouteNotFoundError,
    UnauthorizedError,
)
from deployments.http.request import (
    CLASS_HEADER,
    CLIENT_HEADER,
    MODEL_HEADER,
    OWN_HEADERS,
    SECRET_HEADER,
    TASKS_HEADER,
)
from deployments.ingress.config import EVERY_NAME, IngressConfig
from deployments.ingress.lines import MODEL, NODE, OWN_SOCKET, PREFIX, SECRET, SEPARATOR, TASK, Lines
from deployments.ingress.node import KEYS, PEER, PEERS, TEACHER
from deployments.ingress.refusals import ANY, TRACK, counted
from deployments.protocols.openai.errors import failure_body
from pipelines.errors import InvalidInputError, OverloadedError, SextetError
from pipelines.tasks import TASKS

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROBES = ("/health", "/ready", "/v2/health/live", "/v2/health/ready")
OPEN_PATHS = ("/-/healthz", *PROBES, *(f"{path}/" for path in PROBES))
"""What load balancers and probes ask: it needs no key. Neither do `_readiness_rules`, and no path besides."""
OPEN_VARIABLE = "SEXTET_OPEN_TO_EVERYBODY"
"""Where 1, of HAProxy's environment, waives keys as `open_to_everybody` does: for images, whose file is built in."""
LOOPBACK = "127.0.0.0/8 ::1"
LOCAL_NAMES = ("localhost",)
ADDRESS = r"^([0-9.]+|\[[0-9a-f:.]+\])$"
"""A page can make its own name lead to this machine (DNS rebinding), but it cannot make an address its name."""
TABLE = "sextet_keys"
TEMPORARY = "txn.sextet_"
WINDOW_MS, MASK = 60_000, 0xFFFF_FFFF
"""Of a key's rate; and of the 32 bits that a table keeps of a time."""
FROM_ELSEWHERE = f"!{{ dst {LOOPBACK} }} !{{ env({OPEN_VARIABLE}) -m str 1 }}"
"""A condition: what is closed is closed to such requests."""
_HAS_TASKS = f"{{ var({TEMPORARY}tasks) -m found }} !{{ var({TEMPORARY}tasks) -m str * }}"
MAY_NOT = f"{_HAS_TASKS} !{{ var({TEMPORARY}tasks) -m sub |{TASK}| }}"
"""A condition: the key of the request is not for the task."""
Refuse = Callable[..., list[str]]
"""Makes the lines that refuse, for a reason and with an error, requests for which a condition holds."""


def access(config: IngressConfig) -> Lines:
    """The rules of `config`."""
    header_bytes = config.limits.max_header_bytes
    rules = [
        # Clients do not speak for the ingress.
        f"http-request del-header {OWN_HEADERS} -m beg",
        *request_id_rules(),
        *_refusal(
            "method",
            MethodNotAllowedError("this method is not allowed anywhere", ", ".join(METHODS)),
            f"!{{ method {' '.join(METHODS)} }}",
        ),
        *_refusal("target", InvalidInputError("the target of the request is not a path"), "!{ path_beg / }"),
        *_refusal(
            "headers",
            HeadersTooLargeError(f"the headers have too many bytes; allowed: at most {header_bytes}"),
            f"{{ req.hdrs,length gt {header_bytes} }}",
        ),
        *_host_rules(config),
        *_origin_rules(config.origins),
    ]
    if config.keys is not None:
        rules += [*_readiness_rules(), *key_rules(_refusal, _is_open())]
        # Else a server that leaves it as it is could find a task in what `_task_rules` cannot read.
        wrong = InvalidInputError("the path has a % without two digits of a byte")
        rules += _refusal("target", wrong, "!{ path,url_dec -m found }")
    if is_closed(config):
        is_probe = f"{{ path {' '.join(OPEN_PATHS)} }}"
        rules += _refusal("closed", CLOSED, f"{FROM_ELSEWHERE} !{{ so_name {OWN_SOCKET} }} !{is_probe}")
    rules += ["http-request del-header authorization", f"http-request set-header {SECRET_HEADER} {SECRET}"]
    return Lines(
        frontend=tuple(rules),
        grpc=tuple(_grpc_rules(config)),
        application=tuple(_task_rules()) if config.keys is not None else (),
        process=(f"localpeer {PEER}",) if config.keys is not None else (),
        sections=(_TABLE_SECTION,) if config.keys is not None else (),
        nowhere=tuple(_refusal("path", RouteNotFoundError("this path does not exist; GET / lists the tasks"), "TRUE")),
    )


NOT_ITS_TASK = ForbiddenError("this key may not ask this task")
CLOSED = ForbiddenError(
    "this ingress listens beyond loopback and knows no keys: set `ingress: {keys: FILE}`, or in words "
    "`open_to_everybody: true`, under user_config of the gateway"
)
# At a reload the process that ends hands its counts to the new one, which listens on the peers' socket. A process does
# so once it was taught itself: the first one by node.py, under the name of a peer that listens nowhere.
_TABLE_SECTION = f"""peers {PEER}
    bind unix@{PEERS} mode 600
    server {PEER}
    server {TEACHER} unix@{NODE}/{TEACHER}.sock
backend {TABLE}
    stick-table type string len 64 size 10k expire 2m store gpt(2),gpc0,gpc0_rate({WINDOW_MS}) peers {PEER}"""


def is_closed(config: IngressConfig) -> bool:
    """Whether nobody from elsewhere is answered, because nothing guards the ingress."""
    return config.keys is None and not config.open_to_everybody


def request_id_rules() -> Iterator[str]:
    """Every answer has an id: the client's own, else a new one."""
    yield f"http-request set-var({TEMPORARY}id) req.hdr(x-request-id)"
    yield f"http-request set-var({TEMPORARY}id) uuid() if !{_found(TEMPORARY + 'id')}"
    not_there = "!{ res.hdr(x-request-id) -m found }"
    yield f"http-after-response set-header x-request-id %[var({TEMPORARY}id)] if {not_there}"


def _host_rules(config: IngressConfig) -> Iterator[str]:
    """Nothing for a page that made its own name lead here. Only browsers matter, and they always send the header."""
    hosts = config.hosts
    if hosts is None:
        if config.keys is not None:  # such a page has no key
            return
        hosts = LOCAL_NAMES
    if EVERY_NAME in hosts:
        return
    exact, ends = [one for one in hosts if one[0] != "*"], [one[1:] for one in hosts if one[0] == "*"]
    name = "req.hdr(host),host_only,lower"
    yield f"http-request set-var({TEMPORARY}machine) hostname"
    known = [f"!{{ {name} -m reg {ADDRESS} }}", f"!{{ {name},strcmp({TEMPORARY}machine) eq 0 }}"]
    known += [f"!{{ {name} -m str {' '.join(exact)} }}"] if exact else []
    known += [f"!{{ {name} -m end {' '.join(ends)} }}"] if ends else []
    error = MisdirectedError("this name in the Host header is not answered; `hosts` of the ingress lists others")
    yield from _refusal("host", error, f"{{ req.hdr(host) -m found }} {' '.join(known)}")


def _origin_rules(origins: Sequence[str]) -> Iterator[str]:
    """Pages of other origins are refused, also where they send blind, or are answered as CORS wants it."""
    origin, own = "req.hdr(origin)", f"{TEMPORARY}host"
    yield f"http-request set-var({own}) req.hdr(host)"
    listed = f"{{ {origin} -m found }}" if EVERY_NAME in origins else f"{{ {origin} -m str {' '.join(origins)} }}"
    unlisted = "" if not origins else f"!{listed} "
    error = ForbiddenError("pages of this origin may not ask; `origins` of the ingress lists those that may")
    same = f"{{ {origin},regsub(^https?://,),strcmp({own}) eq 0 }}"
    if EVERY_NAME not in origins:
        yield from _refusal("origin", error, f"{{ {origin} -m found }} {unlisted}!{same}")
    if origins:
        allowed = f"{TEMPORARY}origin"
        preflight = "hdr access-control-allow-methods 'GET, POST' hdr access-control-max-age 600"
        preflight += " hdr access-control-allow-headers %[req.fhdr(access-control-request-headers)]"
        asks = "METH_OPTIONS { req.hdr(access-control-request-method) -m found }"
        yield f"http-request set-var({allowed}) {origin} if {listed}"
        yield f"http-after-response set-header access-control-allow-origin %[var({allowed})] if {_found(allowed)}"
        yield f"http-after-response set-header access-control-expose-headers * if {_found(allowed)}"
        yield "http-after-response add-header vary origin"
        yield f"http-request return status 204 {preflight} if {_found(allowed)} {asks}"


def _is_open() -> tuple[str, ...]:
    return (
        f"METH_GET {{ path {' '.join(OPEN_PATHS)} }}",
        # The console, which asks for a key.
        "METH_GET { path_reg ^/console/[a-z]+[.](js|css|html|json)$ }",
        "METH_GET { path / } { req.hdr(accept) -m sub text/html }",
        f"{{ so_name {OWN_SOCKET} }}",
    )


def _readiness_rules() -> Iterator[str]:
    """A model's own probes. With the name of another one they would lead to a list of models."""
    models = [f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/1"]
    paths = [f"{prefix}{model}/ready" for prefix in ("", PREFIX) for model in models]
    paths += [f"{PREFIX}/v2/health/live", f"{PREFIX}/v2/health/ready"]
    named = f"{{ req.hdr({MODEL_HEADER}) -m found }}"
    yield f"http-request set-var({TEMPORARY}open) bool(true) if METH_GET {{ path {' '.join(paths)} }} !{named}"


def key_rules(refuse: Refuse, open_to_all: Sequence[str]) -> Iterator[str]:
    """Who has no key, or one that is used up, is refused, unless one of the conditions `open_to_all` holds."""
    key, client, per_minute = f"{TEMPORARY}key", f"{TEMPORARY}client", f"{TEMPORARY}per_minute"
    is_open = f"{TEMPORARY}open"
    for condition in open_to_all:
        yield f"http-request set-var({is_open}) bool(true) if {condition}"
    yield f"http-request set-var({key}) http_auth_bearer,sha2(256),hex,lower,map({KEYS})"
    error = UnauthorizedError("the request has no key that is known here; send one as `authorization: Bearer KEY`")
    yield from refuse("key", error, f"!{_found(key)} !{_found(is_open)}", www_authenticate="Bearer")
    yield f"http-request set-var({client}) var({key}),field(1,:)"
    yield f"http-request set-var({per_minute}) var({key}),field(2,:)"
    yield f"http-request set-var({TEMPORARY}tasks) var({key}),field(4,:)"
    yield f"http-request track-sc0 var({client}) table {TABLE} if {_found(client)}"
    yield from _rate_rules(refuse, f"{_found(client)} {{ var({per_minute}) -m int gt 0 }}", per_minute)
    yield f"http-request sc-inc-gpc0(0) if {_found(client)}"
    yield f"http-request set-header {CLIENT_HEADER} %[var({client})] if {_found(client)}"
    yield f"http-request set-header {CLASS_HEADER} %[var({key}),field(3,:)] if {_found(client)}"
    yield f"http-request set-header {TASKS_HEADER} %[var({TEMPORARY}tasks)] if {_HAS_TASKS}"


def _rate_rules(refuse: Refuse, is_limited: str, per_minute: str) -> Iterator[str]:
    """Who has used up the requests of a minute is told when the next one is let through.

    HAProxy counts in windows of a minute, and the one before counts for the part of it that the last 60 s reach into:

        rate = counted + before * left / 60 s    of which HAProxy tells the rate; `left` is what is left of this window

    It tells neither `left` nor `counted`. The table therefore keeps when the window began (gpt 0) and the count of all
    requests at that time (gpt 1). `before` decays, so that rate < per_minute after

        wait = left * (rate + 1 - per_minute) / (rate + 1 - counted)    (+ 1: HAProxy rounds the rate down)
    """
    now, began, left, rate, old, wait = (
        f"{TEMPORARY}{name}" for name in ("now", "began", "left", "rate", "old", "wait")
    )
    exceeded = f"{is_limited} {{ sc_gpc0_rate(0,{TABLE}),sub({per_minute}) ge 0 }}"
    yield f"http-request set-var({now}) date(0,ms),and({MASK}) if {is_limited}"
    yield f"http-request set-var({began}) sc_get_gpt(0,0,{TABLE}) if {is_limited}"
    yield f"http-request set-var({left}) var({began}),sub({now}),add({WINDOW_MS}),and({MASK}) if {is_limited}"
    is_over = f"{is_limited} {{ var({left}) -m int gt {WINDOW_MS} }}"  # below zero, in 32 bits
    yield f"http-request set-var({rate}) sc_gpc0_rate(0,{TABLE}),add(1) if {exceeded}"
    yield f"http-request set-var({left}) int(1) if {_found(rate)} {is_over}"
    yield f"http-request set-var({old}) sc_get_gpt(1,0,{TABLE}) if {_found(rate)}"
    yield f"http-request set-var({old}) var({old}),add({rate}) if {_found(rate)}"
    yield f"http-request set-var({wait}) sc_get_gpc0(0,{TABLE}) if {_found(rate)}"
    yield f"http-request set-var({old}) var({old}),sub({wait}) if {_found(rate)}"
    yield f"http-request set-var({wait}) var({rate}),sub({per_minute}),mul({left}),div({old}) if {_found(rate)}"
    yield f"http-request set-var({wait}) var({wait}),add(999),div(1000) if {_found(rate)}"
    used_up = OverloadedError("this key has used up its requests of this minute", retry_after_s=1.0)
    yield from refuse("rate_limit", used_up, _found(rate), retry_after=f"%[var({wait})]")
    # As HAProxy does: the next window begins where the last one ended, unless a whole one has passed since.
    is_next = f"{{ var({left}) -m int gt {MASK - WINDOW_MS} }}"
    yield f"http-request sc-set-gpt(1,0) sc_get_gpc0(0,{TABLE}) if {is_over}"
    yield f"http-request sc-set-gpt(0,0) var({began}),add({WINDOW_MS}),and({MASK}) if {is_over} {is_next}"
    yield f"http-request sc-set-gpt(0,0) var({now}) if {is_over} !{is_next}"


def _grpc_rules(config: IngressConfig) -> Iterator[str]:
    """The same keys, as metadata `authorization`. An error of gRPC is a 200 with trailers."""
    probe, refused = "{ path /ray.serve.RayServeAPIService/Healthz }", "http-request return status 200"
    refused += " hdr content-type application/grpc hdr grpc-status"
    key = f"{TEMPORARY}key"
    no_key, not_its_task = counted(401, "key"), counted(403, "task")
    yield TRACK
    yield f"http-request del-header {OWN_HEADERS} -m beg"
    if config.keys is not None:
        yield f"http-request set-var({key}) http_auth_bearer,sha2(256),hex,lower,map({KEYS})"
        yield f"{refused} 16 hdr grpc-message 'no key that is known here' {no_key} if !{_found(key)} !{probe}"
        yield f"http-request set-var({TEMPORARY}tasks) var({key}),field(4,:)"
        tasks, asked = f"{TEMPORARY}tasks", f"{TEMPORARY}asked"
        yield f"http-request set-var-fmt({asked}) '=%[req.hdr(application)]'"
        for task in TASKS:  # who names no application would get the only one that is deployed
            may_not = f"if {_found(tasks)} !{{ var({tasks}) -m str * }} !{{ var({tasks}) -m sub |{task}| }}"
            of_its_models = f"{may_not} {{ var({asked}) -m beg ={task}{SEPARATOR} }}"
            may_not += f" {{ var({asked}) -m str ={task} }}"
            refusing = f"{refused} 7 hdr grpc-message 'this key may not ask this task' {not_its_task}"
            yield f"{refusing} {may_not}"
            yield f"{refusing} {of_its_models}"
        may_not = f"if {_found(tasks)} !{{ var({tasks}) -m str * }} {{ var({asked}) -m str = }}"
        yield f"{refused} 7 hdr grpc-message 'this key needs the metadata application' {not_its_task} {may_not}"
        yield f"http-request set-header {CLIENT_HEADER} %[var({key}),field(1,:)] if {_found(key)}"
        yield f"http-request set-header {CLASS_HEADER} %[var({key}),field(3,:)] if {_found(key)}"
    elif not config.open_to_everybody:
        waived = f"{{ env({OPEN_VARIABLE}) -m str 1 }}"
        refusing = f"{refused} 7 hdr grpc-message 'keys or a waiver first' {counted(403, 'closed')}"
        yield f"{refusing} if !{{ dst {LOOPBACK} }} !{probe} !{waived}"
    yield "http-request del-header authorization"


def _task_rules() -> Iterator[str]:
    """By the path that a server sees: Ray Serve's fallback proxy finds the task in it, where the gateway is away."""
    for path in (f"{{ path,url_dec -m str {PREFIX} }}", f"{{ path,url_dec -m beg {PREFIX}/ }}"):
        yield from _refusal("task", NOT_ITS_TASK, f"{MAY_NOT} {path}", TASK)


def _found(variable: str) -> str:
    return f"{{ var({variable}) -m found }}"


def _refusal(reason: str, error: SextetError, condition: str, application: str = ANY, **headers: str) -> list[str]:
    """The answer to requests for which `condition` holds: in OpenAI's shape below /v1, else in that of all others.

    It is counted (refusals.py) by `application` and `reason`. `headers` go on top of those of the failure.
    """
    failure = Failure.of(error)
    head = f"http-request return status {failure.status} content-type application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    for name, value in {"cache-control": "no-store", **failure.headers, **named}.items():
        head += f" hdr {name} '{value}'"
    head += f" {counted(failure.status, reason, application)}"
    bodies = {"{ path_sub /v1/ } ": failure_body(failure), "": failure.body()}
    return [f"{head} string '{body.decode()}' if {shape}{condition}" for shape, body in bodies.items()]
