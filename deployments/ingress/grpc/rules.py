"""gRPC: who is answered at its port, and where a call goes. The rules of HTTP, with the errors of gRPC.

    /inference.GRPCInferenceService/ModelInfer       the model's own replicas: the name is the message's first field
    /inference.GRPCInferenceService/ModelStreamInfer likewise, by its first message
    all other calls of the service                   the gateway

Replicas answer them as POSTs over HTTP/1.1, at <prefix>/grpc/<call>, so that keys, priority, deadline, queue, shares of
models and repetition are those of HTTP. A replica's error is JSON with a status; here it gets the code of gRPC.
"""

from urllib.parse import quote

from deployments.http.errors import (
    Failure,
    HeadersTooLargeError,
    MethodNotAllowedError,
    RouteNotFoundError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from deployments.http.request import DEADLINE_HEADER, OWN_HEADERS, SECRET_HEADER
from deployments.ingress.access import (
    CLOSED,
    FROM_ELSEWHERE,
    MAY_NOT,
    NOT_ITS_TASK,
    is_closed,
    key_rules,
    request_id_rules,
)
from deployments.ingress.config import IngressConfig
from deployments.ingress.drain import REFUSING
from deployments.ingress.grpc.sections import APPLICATION_VARIABLE
from deployments.ingress.limits import OF_REPLICAS, PAGES, TOLD, UNAVAILABLE, body_timeout, connections
from deployments.ingress.lines import APPLICATION, BACKEND, MODEL, MODELS, PREFIX, SECRET, TASK, GrpcLines
from deployments.ingress.model_rules.rules import ASKED_TASK, CHOSEN, HEADER, SPLIT, shares
from deployments.ingress.overload import IF_LATE, OVERLOADED, overload
from deployments.ingress.refusals import ANY, counted
from pipelines.errors import DeadlineExceededError, OverloadedError, SextetError

SERVICE = "/inference.GRPCInferenceService/"
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 408: 4, 413: 3, 415: 12, 421: 7, 422: 3, 429: 8, 431: 3, 499: 1}
CODES |= {500: 13, 502: 14, 503: 14, 504: 14}
"""gRPC's code for each status: INVALID_ARGUMENT is 3, DEADLINE_EXCEEDED 4, RESOURCE_EXHAUSTED 8, UNAVAILABLE 14."""
INTERNAL = 13
KEY_HEADER = "x-api-key"
"""Metadata that clients may send a key in, besides `authorization`."""
NAMED_BYTES = 24
"""Of a stream, which are there before its model is looked for: the name of every task fits in."""
ERROR_S = 5
_REFUSED = "http-request return status 200 hdr grpc-status"
_NAME = "txn.sextet_name"
_IS_INFER = f"{{ path {SERVICE}ModelInfer {SERVICE}ModelStreamInfer }}"
_IS_STREAM = f"{{ path {SERVICE}ModelStreamInfer }}"
_IS_OPEN = f"{{ path {SERVICE}ServerLive {SERVICE}ServerReady {SERVICE}ModelReady }}"
_IS_APPLICATION = f"{{ var({APPLICATION_VARIABLE}) -m str {APPLICATION} }}"
_ASKS = f"{{ var({ASKED_TASK}) -m str {TASK} }}"


def grpc(config: IngressConfig, bind_options: str) -> GrpcLines:
    """The lines of `config`; none where it has no port for gRPC."""
    if config.grpc_port is None:
        return GrpcLines()
    late = f"{_REFUSED} 8 hdr grpc-message '{_encoded(OVERLOADED)}' hdr grpc-retry-pushback-ms %[var(txn.late)] "
    refusing = overload((f"{late}{counted(429, 'overloaded', BACKEND)} {IF_LATE}",))
    errors = {**PAGES, 408: ("timeout", DeadlineExceededError("the call was not complete in time"))}
    pages = tuple(_page(status, *one) for status, one in errors.items())
    of_replicas = tuple(_page(status, *errors[status], BACKEND) for status in OF_REPLICAS)
    return GrpcLines(
        port=config.grpc_port,
        bind_options=bind_options or "proto h2",
        frontend=("mode http", *pages, *connections(config.limits).frontend, *refusing.frontend, *_access(config)),
        several=_several(config.traffic is not None),
        application=(
            f"http-request set-var({APPLICATION_VARIABLE}) str({APPLICATION}) if {_IS_INFER} "
            f"{{ var({_NAME}) -m str {MODEL} }}",
            *(refusal("task", NOT_ITS_TASK, f"{MAY_NOT} {_IS_APPLICATION}", TASK) if config.keys is not None else ()),
            rf"http-request replace-path ^{SERVICE}(.*)$ {PREFIX}/grpc/\1 if {_IS_APPLICATION}",
        ),
        rest=(
            f"{_REFUSED} {CODES[404]} hdr grpc-message "
            f"'there is no model %[var({_NAME}),bytes(0,60),url_enc]; allowed: {MODELS}' "
            f"{counted(404, 'model')} if {_IS_INFER}",  # whose path no rule has replaced
            rf"http-request replace-path ^{SERVICE}(.*)$ /grpc/\1 if {{ path_beg {SERVICE} }}",
            f"http-request set-var({APPLICATION_VARIABLE}) str(gateway) if !{{ var({APPLICATION_VARIABLE}) -m found }}",
        ),
        backend=(*of_replicas, *refusing.backend, *body_timeout(config.limits), *_translation()),
        nowhere=tuple(refusal("no_replica", UNAVAILABLE, "TRUE")),
    )


def refusal(reason: str, error: SextetError, condition: str, application: str = ANY, **headers: str) -> list[str]:
    """The answer to calls for which `condition` holds, counted as that of HTTP. gRPC has no place for its headers."""
    failure = Failure.of(error)
    told = f"{_REFUSED} {CODES[failure.status]} hdr grpc-message '{_encoded(failure.error)}'"
    return [f"{told} {counted(failure.status, reason, application)} if {condition}"]


def _access(config: IngressConfig) -> list[str]:
    most = config.limits.max_header_bytes
    ending = UnavailableError("the cluster is shutting down", retry_after_s=5.0)
    compressed = UnsupportedMediaTypeError("the messages are compressed; allowed: grpc-encoding identity")
    unknown = f"!METH_POST || !{{ path_beg {SERVICE} }} || {{ path_len gt 64 }}"
    is_compressed = "{ req.hdr(grpc-encoding) -m found } !{ req.hdr(grpc-encoding) -m str identity }"
    key = f"{{ req.hdr({KEY_HEADER}) -m found }} !{{ req.hdr(authorization) -m found }}"
    body_s, idle_s = config.limits.body_timeout_s, config.limits.idle_timeout_s
    return [
        f"http-request del-header {OWN_HEADERS} -m beg",
        *request_id_rules(),
        "http-after-response set-header content-type application/grpc",
        "http-after-response set-status 200 if !{ status 200 }",  # of a page
        *refusal("shutting_down", ending, f"{{ var({REFUSING}) -m bool }}"),
        *refusal("method", MethodNotAllowedError("this is no call of inference.GRPCInferenceService", "POST"), unknown),
        *refusal(
            "headers",
            HeadersTooLargeError(f"the metadata has too many bytes; allowed: at most {most}"),
            f"{{ req.hdrs,length gt {most} }}",
        ),
        *(
            (
                f'http-request set-header authorization "Bearer %[req.hdr({KEY_HEADER})]" if {key}',
                *key_rules(refusal, (_IS_OPEN,)),
            )
            if config.keys is not None
            else ()
        ),
        *(refusal("closed", CLOSED, f"{FROM_ELSEWHERE} !{_IS_OPEN}") if is_closed(config) else ()),
        "http-request del-header authorization",
        f"http-request del-header {KEY_HEADER}",
        f"http-request set-header {SECRET_HEADER} {SECRET}",
        *refusal("compression", compressed, is_compressed),
        *_deadline(),
        # Ray Serve reads all that comes of a request at once, unless it is told that the client stays.
        "http-request del-header x-request-disconnect-disabled",
        f"http-request set-header x-request-disconnect-disabled ?1 if {_IS_STREAM}",
        f"http-request wait-for-body time {body_s}s if !{_IS_STREAM}",
        f"http-request wait-for-body time {idle_s}s at-least {NAMED_BYTES} if {_IS_STREAM}",
        f"http-request set-var({_NAME}) req.body,bytes(5),protobuf(1) if {_IS_INFER}",
    ]


def _deadline() -> list[str]:
    """`grpc-timeout: 5010m` as seconds, 5.010, in the header of HTTP. Units: hours, minutes, seconds, m, u and n."""
    name, given = "txn.sextet_timeout", "req.hdr(grpc-timeout)"
    rules = [
        f"http-request set-var({name}) '{given},{convert}' if {{ {given} -m end {unit} }}"
        for unit, convert in {
            "H": 'regsub("H",""),mul(3600)',
            "M": 'regsub("M",""),mul(60)',
            "S": 'regsub("S","")',
            "m": _fraction("m", 3),
            "u": _fraction("u", 6),
            "n": _fraction("n", 9),
        }.items()
    ]
    return [*rules, f"http-request set-header {DEADLINE_HEADER} %[var({name})] if {{ var({name}) -m found }}"]


def _fraction(unit: str, digits: int) -> str:
    zeros, shifted = "0" * digits, f"([0-9]{{{digits}}}){unit}$"
    return rf'''regsub("^","{zeros}"),regsub("{shifted}",".\1"),regsub("^0+","")'''


def _several(traffic: bool) -> tuple[str, ...]:
    """The metadata `x-model` chooses a model of the task that the message names, else the task's shares do."""
    error = RouteNotFoundError(f"there is no model of this name; allowed: {TASK} {MODELS}")
    unknown = f"{_ASKS} {{ var({CHOSEN}) -m found }} !{{ var({CHOSEN}) -m str {TASK} {MODELS} }}"
    return (
        f"http-request set-var({ASKED_TASK}) str({TASK}) if {{ var({_NAME}) -m str {TASK} }}",
        f"http-request set-var({SPLIT}) bool(true) if {_ASKS} !{{ req.hdr({HEADER}) -m found }}",
        f"http-request set-var({CHOSEN}) req.hdr({HEADER}) if {_ASKS} {{ req.hdr({HEADER}) -m found }}",
        *refusal("model", error, unknown, TASK),
        *(shares() if traffic else ()),
        f"http-request set-var({_NAME}) str({MODEL}) if {_ASKS} {{ var({CHOSEN}) -m str {MODEL} }}",
    )


def _translation() -> tuple[str, ...]:
    """A replica's errors, and those of Ray Serve."""
    is_error, message = "!{ status 200 }", "txn.sextet_error"
    known = [
        f"http-response return status 200 hdr grpc-status {code} "
        f"hdr grpc-message %[var({message})] if {{ status {status} }}"
        for status, code in CODES.items()
    ]
    pushback = "hdr grpc-retry-pushback-ms %[res.hdr(retry-after),mul(1000)]"
    known = [line.replace(" if ", f" {pushback} if ") if "status 429" in line else line for line in known]
    return (
        f"http-response wait-for-body time {ERROR_S}s if {is_error}",
        f"http-response set-var({message}) str('the server failed on this request'),url_enc if {is_error}",
        f"http-response set-var({message}) res.body,json_query('$.error'),url_enc if {is_error} "
        "{ res.body,json_query('$.error') -m found }",
        *known,
        f"http-response return status 200 hdr grpc-status {INTERNAL} hdr grpc-message %[var({message})] if {is_error}",
    )


def _page(status: int, reason: str, error: Exception, application: str = ANY) -> str:
    """What HAProxy answers by itself where it would answer with `status`, which becomes 200 (_access)."""
    code, wait_s = CODES.get(status, INTERNAL), error.retry_after_s if isinstance(error, OverloadedError) else 0.0
    pushback = f" hdr grpc-retry-pushback-ms {1000 * wait_s:.0f}" if wait_s else ""
    told = f"hdr grpc-status {code} hdr grpc-message '{_encoded(str(error))}'{pushback}"
    return f"http-error status {status} {told} {counted(TOLD.get(status, status), reason, application)}"


def _encoded(message: str) -> str:
    """As gRPC encodes a message, and as a string of HAProxy's log formats between single quotes."""
    return quote(message, safe=" ,;:.=()/{}<>*").replace("%", "%%")
