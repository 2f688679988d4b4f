"""The parts of `make bench-scale` that need no cluster."""

import json
from datetime import UTC, datetime

import pytest

from benchmarks.suites.scale.replica_watch import (
    USUAL_START_S,
    Life,
    first_served,
    lives,
    mean_start_s,
    replica_seconds,
)

REPLICA = "Replica(id='{}', deployment='{}', app='text-classification')"
STARTED = (
    "INFO 2026-01-31 12:00:{},500 controller 42 -- {} started successfully on node '0e0c' after {}s (PID: {}). Replica"
)


def line(second: str, replica: str, after_s: float, process: int, deployment: str = "text-classification") -> str:
    return STARTED.format(second, REPLICA.format(replica, deployment), after_s, process)


def test_a_replica_began_when_the_controller_asked_for_it() -> None:
    log = "\n".join(
        [
            "INFO 2026-01-31 12:00:00,000 controller 42 -- Adding 2 replicas to Deployment(name='a').",
            line("05", "aaa", 4.5, 100),
            line("06", "bbb", 2.0, 101),
            line("06", "ccc", 3.0, 102, deployment="gateway"),
            line("40", "aaa", 39.5, 100),
            "INFO 2026-01-31 12:00:50,000 controller 42 -- Stopping " + REPLICA.format("aaa", "text-classification"),
        ]
    )
    at = datetime.strptime("2026-01-31 12:00:00", "%Y-%m-%d %H:%M:%S").timestamp()
    assert lives(log, "text-classification") == [Life("aaa", at + 1.0, 100), Life("bbb", at + 4.5, 101)]


def test_seconds_of_replicas_are_those_within_the_measurement() -> None:
    found = [Life("before", 10.0, 1), Life("within", 130.0, 2), Life("ended", 110.0, 3), Life("after", 300.0, 4)]
    last_seen = {1: 500.0, 2: 500.0, 3: 120.0, 4: 500.0}
    assert replica_seconds(found, last_seen, since=100.0, within_s=100.0) == pytest.approx(100 + 70 + 10)


def test_a_start_takes_until_the_first_request() -> None:
    def request(replica: str, ended_at: float, total_s: float) -> str:
        at = datetime.fromtimestamp(ended_at, UTC).isoformat()
        return json.dumps({"replica": replica, "time": at, "total_s": total_s})

    log = "\n".join([request("a", 1001.0, 1.0), request("b", 1010.0, 0.5), request("b", 1009.0, 2.0)])
    served = first_served(log)
    assert served == pytest.approx({"a": 1000.0, "b": 1007.0})
    found = [Life("a", 900.0, 1), Life("b", 1001.0, 2), Life("c", 1002.0, 3)]
    assert mean_start_s(found, served, since=1000.0) == pytest.approx(6.0)
    assert mean_start_s(found[:1], served, since=1000.0) == USUAL_START_S
