"""Probes: what HAProxy answers by itself from the state of its servers, so that it needs no replica of the gateway.

GET /health, /v2/health/live       this node's ingress works
GET /ready, /v2/health/ready       every application but the gateway has a replica that passes its health checks, or
                                   may have none, and then a proxy that starts one for the first request

The gateway answers the same where Ray Serve's Python proxy serves. HAProxy checks each replica twice a second
(ray_environment.py), so the answer is true within a second of the end of a process, however many ask and whatever else
of Ray has died.
"""

from deployments.ingress.lines import APPLICATION, SERVER, Lines

FALL = 2
"""A replica is taken out after so many health checks in a row that it failed: Ray Serve's default."""
STALLED_S = 5.0
"""How long the event loop of a replica may be busy, as while others load their models on the same cores: so long it
answers no check. A process that has ended refuses the first one. A server that is new to HAProxy has half of it.
"""

_TIMES = ("x-queue-time", "x-tokenization-time", "x-inference-time", "x-total-time")
_HEADERS = (
    f"{' '.join(f'hdr {name} 0.000' for name in _TIMES)} hdr x-compute-tokens 0 hdr x-request-id %[var(txn.probe_id)]"
)
"""Of every response (deployments/http/request.py)."""


def probes() -> Lines:
    """The rules, and the limit of health checks."""
    return Lines(
        defaults=(f"timeout check {STALLED_S / FALL * 1000:.0f}ms",),
        frontend=(
            "acl is_ready path /ready /ready/ /v2/health/ready /v2/health/ready/",
            "acl is_health path /health /health/",
            "acl is_live path /v2/health/live /v2/health/live/",
            "acl is_v2 path_beg /v2/",
            "http-request set-var(txn.probe_id) uuid if is_ready or is_health or is_live",
            "http-request set-var(txn.probe_id) req.hdr(x-request-id) "
            "if { var(txn.probe_id) -m found } { req.hdr(x-request-id) -m found }",
            "acl is_one_ready var(txn.ready) -m found",
            "acl is_one_missing var(txn.missing) -m found",
        ),
        replica=(f"acl is_up_{APPLICATION} srv_is_up(http-{APPLICATION}/{SERVER})",),
        application=(
            f"acl is_up_{APPLICATION} always_false",  # one that has no replica
            _appended("ready", f',\\"{APPLICATION}\\"', f"is_ready is_up_{APPLICATION}"),
            _appended("missing", f',\\"{APPLICATION}\\"', f"is_ready !is_up_{APPLICATION}"),
            _appended("missing_names", f",\\ {APPLICATION}", f"is_ready !is_up_{APPLICATION}"),
        ),
        gateway=(
            _answer(200, '{"status":"ok"}', "is_health"),
            _answer(200, '{"live":true}', "is_live"),
            _answer(200, '{"ready":true}', "is_ready is_v2 is_one_ready !is_one_missing"),
            _answer(503, '{"ready":false}', "is_ready is_v2"),
            _answer(
                503,
                '{"error":"no ready replica: %[var(txn.missing_names),bytes(2)]","error_type":"overloaded",'
                '"not_ready":[%[var(txn.missing),bytes(1)]]}',
                "is_ready is_one_missing",
            ),
            _answer(
                503,
                '{"error":"no task is deployed","error_type":"overloaded","not_ready":[]}',
                "is_ready !is_one_ready",
            ),
            _answer(200, '{"status":"ready","tasks":[%[var(txn.ready),bytes(1)]]}', "is_ready"),
        ),
    )


def _appended(name: str, text: str, condition: str) -> str:
    return f"http-request set-var-fmt(txn.{name}) %[var(txn.{name},)]{text} if {condition}"


def _answer(status: int, body: str, condition: str) -> str:
    quoted = body.replace('"', '\\"')
    return (
        f'http-request return status {status} content-type application/json lf-string "{quoted}" '
        f"hdr cache-control no-store {_HEADERS} if METH_GET {condition}"
    )
