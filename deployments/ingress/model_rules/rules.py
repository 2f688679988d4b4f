"""Models: a task may have several, each an application of its own; HAProxy finds the one that a request asks for.

    /text-generation                        the application text-generation, the default; it gives away shares of its
                                            requests where there is a file of them (traffic.py)
    /text-generation/large                  the application text-generation.large
    /text-generation/default/...            the default at /text-generation/..., whatever the shares
    x-model: large                          the model `large`, at the task's own path
    {"model": "large", ...}                 the same, in bodies at /text-generation/v1/... (Cohere's: /v2/rerank) that
                                            HAProxy's buffer holds
    /v2/models/large, /models/large         the same, by the names of models of other protocols

No Python is asked, and a task with one model has none of these rules. Names that the default has besides its task's,
its id and those of its adapters, are not looked for here: its replicas get the others' names with each request, and
answer 404 or a redirect (protocols/model_name.py). A model that answers a share is told so, and redirects a body that
names what it does not know, the default's id or an adapter, to the default's path.
"""

import json

from deployments.config import DEFAULT, RESERVED
from deployments.http.request import DRAWN_HEADER, MODEL_HEADER, OTHERS_HEADER
from deployments.ingress.lines import MODEL, MODEL_PREFIX, MODELS, PREFIX, TASK, Lines
from deployments.ingress.model_rules.traffic import PARTS
from deployments.ingress.node import TRAFFIC
from deployments.ingress.refusals import counted

HEADER = MODEL_HEADER
ASKED_TASK, CHOSEN, SPLIT, _KNOWN, _DRAW, _BOUND, _CLIENT = (
    f"txn.sextet_{name}" for name in ("several", "model", "split", "known", "draw", "bound", "stays")
)
_SEQUENCE = "proc.sextet_sequence"
_KEY = "txn.sextet_client"  # its name, where the ingress knows keys: access.py
STEP = 6181
"""The golden section of PARTS, and prime to it."""
_ASKS = f"{{ var({ASKED_TASK}) -m str {TASK} }}"
_DEFAULT = f"{PREFIX}/{DEFAULT}"
_SHARED = f"{{ path_reg ^{PREFIX}/?(/({'|'.join(RESERVED)})(/.*)?)?$ }}"
"""The task's own; any other may be that of an adapter."""
_OPEN = f"{{ var({ASKED_TASK}) -m str {TASK} }} !{{ var({CHOSEN}) -m found }}"
_NAMES = f"METH_POST {{ path_beg {PREFIX}/v1/ {PREFIX}/v2/rerank }}"
"""Whose bodies have the name of a model: clients of OpenAI and Cohere."""
_DRAWS = f"{_ASKS} {{ var({SPLIT}) -m found }}"


def models(body_timeout_s: int, traffic: bool) -> Lines:
    """Their rules; shares of requests where `traffic`."""
    error = f"there is no model %[req.hdr({HEADER}),bytes(0,60),json(utf8s)] of {TASK}; allowed: {TASK} {MODELS}"
    shapes = {"{ path_sub /v1/ }": _openai(error), "": json.dumps({"error": error, "error_type": "not_found"})}
    unknown = f"{_ASKS} {{ req.hdr({HEADER}) -m found }} !{{ var({_KNOWN}) -m found }}"
    refuse = "http-request return status 404 content-type application/json hdr cache-control no-store "
    refuse += f"{counted(404, 'model', TASK)} lf-string"
    return Lines(
        several=(
            f"http-request set-var({ASKED_TASK}) str({TASK}) if {{ path {PREFIX} }} || {{ path_beg {PREFIX}/ }}",
            f"http-request unset-var({ASKED_TASK}) if {{ path {MODEL_PREFIX} }} || {{ path_beg {MODEL_PREFIX}/ }}",
            f"http-request set-var({CHOSEN}) req.hdr({HEADER}) if {_ASKS} {{ req.hdr({HEADER}) -m found }}",
            f"http-request set-var({CHOSEN}) str({TASK}) if {_ASKS} {{ path_reg ^{_DEFAULT}(/|$) }}",
            # A rule of its own: HAProxy takes 64 words in a line.
            f"http-request set-var({_KNOWN}) bool(true) if {_ASKS} {{ var({CHOSEN}) -m str {TASK} {MODELS} }}",
            *(f"{refuse} '{body}' if {unknown} {shape}".rstrip() for shape, body in shapes.items()),
            f"http-request replace-path ^{_DEFAULT}(/.*)?$ {PREFIX}\\1 if {_ASKS}",
            # The gateway lists all of them.
            f"http-request replace-path ^{PREFIX}/v1/models(/.*)?$ /catalog/{TASK}/v1/models\\1 if {_OPEN} METH_GET",
            f"http-request wait-for-body time {body_timeout_s}s if {_OPEN} {_NAMES}",
            f"http-request set-var({SPLIT}) bool(true) if {_OPEN} {_SHARED}",
            f"http-request unset-var({SPLIT}) if {_OPEN} METH_GET {{ path_beg {PREFIX}/v2/models/ }}",  # it is named
            f"http-request set-var({CHOSEN}) req.body,json_query('$.model') if {_OPEN} {_NAMES}",
            f"http-request unset-var({SPLIT}) if {_ASKS} {{ var({CHOSEN}) -m str {MODELS} }}",
            *(shares() if traffic else ()),
            f"http-request set-header {OTHERS_HEADER} '{MODELS}' if {_ASKS}",
            f"http-request replace-path ^{PREFIX}(/.*)?$ {MODEL_PREFIX}\\1 "
            f"if {_ASKS} {{ var({CHOSEN}) -m str {MODEL} }}",
        )
    )


def shares() -> tuple[str, ...]:
    """A request that names no other model draws one, or its client's number stands for a draw.

    The draws are no random numbers: steps of STEP fill every interval as evenly as can be, also of few requests.
    """
    return (
        f"http-request set-var({_SEQUENCE}) int(0) if !{{ var({_SEQUENCE}) -m found }}",
        f"http-request set-var({_SEQUENCE}) var({_SEQUENCE}),add({STEP}),mod({PARTS}) if {_DRAWS}",
        f"http-request set-var({_DRAW}) var({_SEQUENCE}) if {_DRAWS}",
        f"http-request set-var-fmt({_CLIENT}) %[src] if {_DRAWS}",
        f"http-request set-var({_CLIENT}) var({_KEY}) if {_DRAWS} {{ var({_KEY}) -m found }}",
        f"http-request set-var({_DRAW}) var({_CLIENT}),xxh32,mod({PARTS}) if {_DRAWS} "
        f"{{ str({TASK}),map_str_int({TRAFFIC},0) eq 1 }}",
        f"http-request set-var({_BOUND}) str({TASK}.{MODEL}),map_str_int({TRAFFIC},0) if {_DRAWS}",
        f"http-request set-var({CHOSEN}) str({MODEL}) if {_DRAWS} {{ var({_DRAW}),sub({_BOUND}) lt 0 }}",
        f"http-request set-header {DRAWN_HEADER} {TASK} if {_DRAWS} {{ var({CHOSEN}) -m str {MODEL} }}",
        f"http-request unset-var({SPLIT}) if {_DRAWS} {{ var({CHOSEN}) -m str {MODEL} }}",
    )


def _openai(error: str) -> str:
    return json.dumps(
        {"error": {"message": error, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}}
    )
