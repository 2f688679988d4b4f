"""Overload: HAProxy answers 429 where every replica would, from what the replicas say of their work.

    replica    x-sextet-load: 1800/30000/1900    with each answer, a 429 too (deployments/http/request.py)
    HAProxy    free 1800 ms from now             kept for each server, and removed from the answer
               n requests inside x 1900 us       its own count is ahead of what a replica said some answers ago
               429                               where a deadline ends before the later of the two, at every server

A refusal costs HAProxy some 20 microseconds. One by a replica takes twenty times as much from the model, and under
overload its event loop has no time left for them. What HAProxy lets through a replica still decides about. The times
pass by themselves: a replica that was busy is asked again.
"""

import json
from collections.abc import Sequence

from deployments.http.request import DEADLINE_HEADER, LOAD_HEADER, START_HEADER
from deployments.ingress.lines import BACKEND, BACKEND_NUMBER, CLOCK, SERVER, SERVER_NUMBER, Lines
from deployments.ingress.refusals import counted, counter

LONGEST_MS = 86_400_000
SURE_PERCENT = 50
"""Of the time that a deadline leaves. A replica's own share (SURE_SHARE) is larger: what was let through while a
prediction grew is answered, not refused after all by a busy event loop.
"""
_FREE, _ROW_US = (f"proc.{name}_{BACKEND_NUMBER}_{SERVER_NUMBER}" for name in ("free", "row_us"))
_QUEUE = f"txn.queue_{SERVER_NUMBER}"
_MAX_WAIT = f"proc.max_wait_{BACKEND_NUMBER}"
_IS_SECONDS = f"{{ req.fhdr({DEADLINE_HEADER}) -m reg ^[0-9]{{0,6}}([.][0-9]*)?$ }}"
_MILLISECONDS = (
    f"'req.fhdr({DEADLINE_HEADER}),concat(.000),"  # 2.5 -> 2.5.000 -> 2.5000 -> 2500
    r'regsub("^([0-9]*[.][0-9]*)[.]","\1"),regsub("^([0-9]*)[.]([0-9]{3}).*$","\1\2")'
    + f",mul({SURE_PERCENT}),div(100)'"
)
_REFUSAL = (
    "status 429 content-type application/json hdr retry-after %[var(txn.late),add(999),div(1000)] "
    f"hdr x-request-id %[var(txn.request_id)] {counted(429, 'overloaded', BACKEND)} lf-string"
)
_IF_KNOWN = f"if {{ var({_MAX_WAIT}) -m found }}"
IF_LATE = f"if METH_POST {{ var(txn.late),add(0) gt 0 }} {{ var(txn.late),add(0) lt {LONGEST_MS} }}"
_IF_UP = f"if {{ var(txn.late) -m found }} {{ srv_is_up({BACKEND}/{SERVER}) }}"
_IF_SAID = f"if {{ var(txn.load) -m found }} {{ srv_name {SERVER} }}"
OVERLOADED = "the deadline cannot be met, or the queue is full: the work of other requests goes before this one"


UNHEARD = {408: "timeout", 429: "overloaded", 500: "internal", 503: "no_replica"}
"""What Ray Serve answers where no replica of ours does: its proxy, which holds the requests of a task that has none,
and its servers around replicas. Nobody else counts that.
"""


def overload(refusals: Sequence[str] | None = None) -> Lines:
    """Its lines. `refusals` end with IF_LATE, and take the place of those in JSON."""
    if refusals is None:
        refusals = (
            f"http-request return {_REFUSAL} '{_openai(OVERLOADED)}' {IF_LATE} {{ path_sub /v1/ }}",
            f"http-request return {_REFUSAL} '{_plain(OVERLOADED)}' {IF_LATE}",
        )
    return Lines(
        frontend=(
            # tcp-request: http-request rules run after the whole body is there.
            "tcp-request content set-var(txn.head_at) date(0,ms)",
            f'http-request set-header {START_HEADER} "%[var(txn.head_at)] {CLOCK}"',
        ),
        backend=(  # where no replica has said anything yet, each line costs one look at a variable
            f"http-request set-var(txn.due) var({_MAX_WAIT}) {_IF_KNOWN}",
            f"http-request set-var(txn.left) {_MILLISECONDS} {_IF_KNOWN} {_IS_SECONDS}",
            "http-request set-var(txn.due) var(txn.left) if { var(txn.left),sub(txn.due) lt 0 }",
            f"http-request set-var(txn.due) var(txn.due),add(txn.head_at) {_IF_KNOWN}",
            f"http-request set-var(txn.now) date(0,ms) {_IF_KNOWN}",
            f"http-request set-var(txn.late) int({LONGEST_MS}) {_IF_KNOWN}",
            f"http-request set-var(txn.free) int(0) {_IF_UP}",
            f"http-request set-var(txn.free) var({_FREE}) {_IF_UP} {{ var({_FREE}) -m found }}",
            f"http-request set-var({_QUEUE}) srv_conn({BACKEND}/{SERVER}),mul({_ROW_US}),div(1000),add(txn.now) "
            f"{_IF_UP} {{ var({_ROW_US}) -m found }}",
            f"http-request set-var(txn.free) var({_QUEUE}) {_IF_UP} {{ var({_QUEUE}),sub(txn.free) gt 0 }}",
            f"http-request set-var(txn.late) var(txn.free),sub(txn.due) {_IF_UP} "
            "{ var(txn.free),sub(txn.due),sub(txn.late) lt 0 }",
            f"http-request set-var(txn.request_id) uuid {IF_LATE}",
            f"http-request set-var(txn.request_id) req.hdr(x-request-id) {IF_LATE} "
            "{ req.hdr(x-request-id) -m found }",
            *refusals,
            f"http-response set-var(txn.load) res.hdr({LOAD_HEADER}) if {{ res.hdr({LOAD_HEADER}) -m found }}",
            f"http-response set-var(txn.wait) var(txn.load),field(1,/),add(0) {_IF_SAID}",
            f"http-response set-var({_FREE}) date(0,ms),add(txn.wait) {_IF_SAID}",
            f"http-response set-var({_MAX_WAIT}) var(txn.load),field(2,/),add(0) {_IF_SAID}",
            f"http-response set-var({_ROW_US}) var(txn.load),field(3,/),add(0) {_IF_SAID}",
            f"http-response del-header {LOAD_HEADER} if {{ var(txn.load) -m found }}",
            "http-response allow if { status 200 }",
            *(
                f"http-response set-var(txn.sextet_counted) {counter(status, reason, BACKEND)} "
                f"if {{ status {status} }} !{{ var(txn.load) -m found }}"
                for status, reason in UNHEARD.items()
            ),
        ),
    )


def _plain(error: str) -> str:
    return json.dumps({"error": error, "error_type": "overloaded"})


def _openai(error: str) -> str:
    return json.dumps({"error": {"message": error, "type": "rate_limit_error", "param": None, "code": "overloaded"}})
