"""The queue's formulas, beside published values and a simulated queue."""

import heapq
from random import Random

import pytest

from deployments.scaling.queueing import late_share, replicas_for, waiting_share


@pytest.mark.parametrize(
    ("servers", "offered", "share"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.409), (5, 6.0, 1.0)],
)
def test_the_share_that_waits_is_that_of_erlang(servers: int, offered: float, share: float) -> None:
    assert waiting_share(servers, offered) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(("servers", "offered", "budget_s"), [(1, 0.6, 0.2), (4, 3.0, 0.1), (8, 7.0, 0.2)])
def test_late_requests_are_as_many_as_in_a_simulated_queue(servers: int, offered: float, budget_s: float) -> None:
    """Service times between constant and exponential, as VARIABILITY says: a sum of two exponential ones."""
    random, service_s, n_requests = Random(1), 0.1, 40_000
    free_at, now_s, late = [0.0] * servers, 0.0, 0
    for _ in range(n_requests):
        now_s += random.expovariate(offered / service_s)
        start_s = max(now_s, heapq.heappop(free_at))
        late += start_s - now_s > budget_s
        heapq.heappush(free_at, start_s + random.gammavariate(2, service_s / 2))
    assert late_share(servers, offered, service_s, budget_s) == pytest.approx(late / n_requests, abs=0.03)


def test_one_replica_fewer_would_miss_the_level() -> None:
    needed = replicas_for(12.0, 1.0, 0.5, 0.5, 0.1)
    assert late_share(needed, 12.0, 0.5, 0.5) <= 0.1 < late_share(needed - 1, 12.0, 0.5, 0.5)


def test_nothing_needs_one_and_unknown_times_need_what_the_load_takes() -> None:
    assert replicas_for(0.0, 1.0, 0.1, 0.5, 0.1) == 1
    assert replicas_for(2.5, 8.0, 0.0, 0.5, 0.1) == 3
