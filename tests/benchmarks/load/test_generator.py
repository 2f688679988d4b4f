import asyncio
import time
from typing import Any

import pytest

from benchmarks.load.generator import Call, measure, split
from tests.benchmarks.loads import CALL, load_on
from tests.benchmarks.local_server import LocalServer, at_once, one_at_a_time, response


def test_a_server_that_stalls_cannot_hide_the_requests_that_waited_for_it() -> None:
    served = 0

    async def stall_once(_body: Any) -> bytes:
        nonlocal served
        served += 1
        if served == 60:
            time.sleep(0.6)  # noqa: ASYNC251  (the whole server stands still)
        return response(b"{}")

    with LocalServer(stall_once) as server:
        tally = measure(load_on(server, rate_per_s=100.0, duration_s=2.0))

    # About 60 of 200 requests were meant to be sent while it stood still; one at a time would have seen a single one.
    assert tally.latency.percentile_ms(99) > 400
    assert tally.latency.percentile_ms(85) > 100


def test_a_closed_loop_keeps_as_many_requests_under_way_as_it_was_told() -> None:
    under_way = most = 0

    async def answer(_body: Any) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return response(b"{}")

    with LocalServer(answer) as server:
        measure(load_on(server, concurrency=7))

    assert most == 7


def test_throughput_counts_inputs_and_the_warm_up_counts_for_nothing() -> None:
    served = 0

    async def answer(_body: Any) -> bytes:
        nonlocal served
        served += 1
        return await service(_body)

    service = one_at_a_time(0.01)
    with LocalServer(answer) as server:
        tally = measure(load_on(server, calls=[Call(CALL.request, n_inputs=3)], warm_up_s=0.5, duration_s=0.5))

    assert tally.per_s["inputs"] == pytest.approx(3 * tally.per_s["requests"])
    assert 0 < tally.per_s["requests"] <= 101
    assert tally.requests < served - 10


def test_goodput_leaves_out_what_came_too_late() -> None:
    with LocalServer(one_at_a_time(0.02)) as server:
        tally = measure(load_on(server, concurrency=4, slo_s=0.03))

    assert tally.summary()["within_slo"] < 0.1
    assert tally.summary()["goodput_per_s"] < tally.summary()["requests_per_s"]


def test_a_trial_that_cannot_meet_its_objective_any_more_is_stopped() -> None:
    with LocalServer(one_at_a_time(0.05)) as server:
        tally = measure(load_on(server, rate_per_s=100.0, duration_s=60.0, slo_s=0.1, hopeless_stops=True))

    assert tally.stopped_early


def test_a_generator_that_is_the_limit_says_so() -> None:
    with LocalServer(at_once) as server:
        tally = measure(load_on(server))
    assert tally.cpu_shares != []

    tally.cpu_shares = [0.97]

    assert "97% of a core" in str(tally.bottleneck())


def test_several_processes_share_a_load_and_merge_what_they_counted() -> None:
    with LocalServer(at_once) as server:
        tally = measure(load_on(server, rate_per_s=100.0, duration_s=1.0), processes=2)

    assert len(tally.cpu_shares) == 2
    assert tally.requests == pytest.approx(100, abs=40)


def test_the_shares_of_a_load_add_up_and_differ_in_their_arrivals() -> None:
    with LocalServer(at_once) as server:
        closed = split(load_on(server, concurrency=5), 2)
        opened = split(load_on(server, rate_per_s=10.0, seed=1), 2)

    assert [share.concurrency for share in closed] == [3, 2]
    assert [share.rate_per_s for share in opened] == [5.0, 5.0]
    assert len({share.seed for share in opened}) == 2
