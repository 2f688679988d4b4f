"""Loads for the tests: short, on loopback."""

from typing import Any

from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call, Load
from tests.benchmarks.local_server import LocalServer

CALL = Call(request_bytes("127.0.0.1", "/", b"{}"))


def load_on(server: LocalServer, **settings: Any) -> Load:
    """A closed loop of one for half a second, unless `settings` say otherwise."""
    defaults: dict[str, Any] = {"calls": [CALL], "duration_s": 0.5, "warm_up_s": 0.1}
    if "rate_per_s" not in settings:
        defaults["concurrency"] = 1
    return Load("127.0.0.1", server.port, **(defaults | settings))
