"""A simulation agrees with what queueing theory knows, keeps every request, and never differs from itself."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scheduling.batching import CostModel
from pipelines.scheduling.scheduler import BatchingConfig, QueueConfig
from planning.deciding.policy import FixedReplicas, View
from planning.simulated.fleet import DRAIN_S, Outcome, Site
from planning.simulated.model import EncoderModel
from planning.simulated.scheduler import SizedRow
from planning.simulated.simulation import Played, play
from planning.traces.trace import Sizes, named
from tests.planning.simulating import PATIENT, constant, exponential, listed, servers, setting


class Scripted:
    """So many replicas from each of these times on."""

    name = "scripted"
    reads_signals = False

    def __init__(self, *steps: tuple[float, int]) -> None:
        self._steps = steps

    def first(self) -> int:
        return self._steps[0][1]

    def replicas(self, view: View) -> int:
        return [count for at_s, count in self._steps if at_s <= view.now_s][-1]


def mean_wait_s(played: Played, service_s: float) -> float:
    return float(np.nanmean(played.latencies_s)) - service_s


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: half the wait of M/M/1."""
    played = play(constant(load, 10, tokens=1000), FixedReplicas(1), setting(servers(), tick_s=60))
    assert played.count(Outcome.ANSWERED) == len(played.trace) > 9_000
    assert mean_wait_s(played, 1.0) == pytest.approx(load / (2 * (1 - load)), rel=0.07)


@pytest.mark.parametrize(("count", "load"), [(1, 0.6), (4, 0.8), (16, 0.9)])
def test_many_servers_wait_as_erlang_says(count: int, load: float) -> None:
    """M/M/c: one queue before c workers of one replica."""
    offered = count * load
    played = play(exponential(offered, 15 / offered, 1000), FixedReplicas(1), setting(servers(count), tick_s=60))
    below = sum(offered**n / math.factorial(n) for n in range(count))
    last = offered**count / math.factorial(count) / (1 - load)
    expected_s = last / (below + last) / (count - offered)
    service_s = float(played.trace.tokens.mean()) / 1000
    assert mean_wait_s(played, service_s) == pytest.approx(expected_s, rel=0.12)


def test_replicas_behind_the_ingress_wait_longer_than_one_queue_and_shorter_than_apart() -> None:
    together = play(exponential(3.2, 4, 1000), FixedReplicas(1), setting(servers(4)))
    behind = play(exponential(3.2, 4, 1000), FixedReplicas(4), setting(servers()))
    apart = play(exponential(0.8, 16, 1000), FixedReplicas(1), setting(servers()))
    waits = [mean_wait_s(one, 1.0) for one in (together, behind, apart)]
    assert waits[0] < waits[1] < 0.6 * waits[2]


def test_a_busy_replica_answers_in_batches_as_its_cost_model_says() -> None:
    """At saturation its rate is that of the largest batch that pays off, not that of single rows."""
    cost, batching = CostModel(start_s=0.5, token_s=0.001), BatchingConfig(max_batch_size=8)
    flood = listed(*[(0.0, 100)] * 800, duration_s=10)
    played = play(flood, FixedReplicas(1), setting(EncoderModel(cost, batching, PATIENT)))
    assert np.nanmax(played.latencies_s) == pytest.approx(800 / 8 * (0.5 + 8 * 0.1), rel=0.05)


def test_the_time_beside_the_model_and_the_speed_of_the_machine_count() -> None:
    trace = listed((1.0, 1000), (50.0, 1000))
    slow = play(trace, FixedReplicas(1), setting(servers(), overhead_s=0.25))
    assert slow.latencies_s.tolist() == pytest.approx([1.25, 1.25])
    fast = play(trace, FixedReplicas(1), setting(servers(), site=Site(speed=4.0)))
    assert fast.latencies_s.tolist() == pytest.approx([0.25, 0.25])


def test_a_request_at_zero_waits_for_the_first_replica() -> None:
    trace = listed((10.0, 1000), duration_s=60)
    played = play(trace, Scripted((0, 0), (20, 1)), setting(servers(), site=Site(start_s=7.0, boot_s=3.0)))
    assert played.latencies_s.tolist() == pytest.approx([10 + 3 + 7 + 1], abs=1.01)


def test_a_replica_that_ends_answers_what_is_inside_and_gets_nothing_new() -> None:
    trace = listed((9.0, 30_000), (9.5, 30_000), *[(20.0 + n, 10) for n in range(20)], duration_s=60)
    played = play(trace, Scripted((0, 2), (10, 1)), setting(servers()))
    assert played.count(Outcome.ANSWERED) == 22
    # One ended early and stayed for its request of 30 s; short ones went to the other, behind its own 30 s.
    assert played.replica_s == pytest.approx(60 + 39, abs=1.1)
    assert np.nanmax(played.latencies_s) <= 30.01


def test_seconds_of_replicas_count_from_the_start_to_the_end_of_draining() -> None:
    trace = listed((1.0, 10), duration_s=100)
    played = play(trace, Scripted((0, 1), (20, 3), (50, 1)), setting(servers(), site=Site(start_s=5.0)))
    assert played.replica_s == pytest.approx(100 + 2 * (30 + DRAIN_S), abs=2.1)
    assert (played.most_replicas, played.series[-1].running) == (3, 1)


def test_what_starts_is_taken_back_before_what_runs() -> None:
    trace = listed((1.0, 10), duration_s=40)
    played = play(trace, Scripted((0, 1), (10, 4), (12, 2)), setting(servers(), site=Site(start_s=10.0)))
    assert played.series[-1].running == 2
    assert played.replica_s == pytest.approx(40 + 30 + 2 * 2, abs=1.1)


def test_machines_are_paid_from_their_boot_until_they_were_idle_long_enough() -> None:
    trace = listed((1.0, 10), duration_s=100)
    site = Site(start_s=5.0, per_machine=2, boot_s=10.0, idle_s=20.0)
    played = play(trace, Scripted((0, 2), (20, 3), (40, 2)), setting(servers(), site=site))
    assert played.most_machines == 2
    assert played.machine_s == pytest.approx(100 + 20 + DRAIN_S + 20, abs=2.5)


def test_a_level_that_cannot_be_held_any_more_ends_the_simulation() -> None:
    trace = constant(2.0, 1, tokens=1000)
    hopeless = play(trace, FixedReplicas(1), replace(setting(servers()), hopeless=(2.0, 0.9)))
    assert hopeless.was_hopeless
    assert hopeless.count(Outcome.UNDER_WAY) > len(trace) / 2


def test_quantiles_shares_and_the_worst_hour_are_those_of_the_requests() -> None:
    trace = listed(
        *[(10.0 * n, 100) for n in range(360)], *[(3600 + 10.0 * n, 1000) for n in range(360)], duration_s=7200
    )
    played = play(trace, FixedReplicas(1), setting(servers()))
    assert (played.quantile_s(0.25), played.quantile_s(0.9)) == pytest.approx((0.1, 1.0))
    assert (played.within(0.5), played.worst_hour(0.5)) == (0.5, 0.0)


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(st.tuples(st.floats(0, 50), st.integers(1, 20_000)), min_size=1, max_size=60),
    targets=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    deadline_s=st.one_of(st.none(), st.floats(0.01, 30)),
    max_queue_s=st.floats(0.5, 60),
)
def test_every_request_is_answered_refused_or_expired(
    requests: list[tuple[float, int]], targets: list[int], deadline_s: float | None, max_queue_s: float
) -> None:
    requests.sort()
    arrivals, tokens = (np.asarray(column) for column in zip(*requests, strict=True))
    trace = Sizes(lambda n, _: tokens, deadline_s=deadline_s).trace("drawn", 60.0, arrivals.astype(float), 0)
    steps = [(6.0 * n, target) for n, target in enumerate(targets)]
    model = servers(queue=QueueConfig(max_queue_s=max_queue_s))
    played = play(trace, Scripted(*steps, (61.0, 1)), setting(model))
    outcomes = {one: played.count(one) for one in Outcome}
    assert outcomes[Outcome.UNDER_WAY] == 0
    assert sum(outcomes.values()) == len(requests)
    assert (~np.isnan(played.latencies_s)).sum() == outcomes[Outcome.ANSWERED]
    if deadline_s is not None:
        assert np.nanmax(played.latencies_s, initial=0.0) <= deadline_s + 1e-9
    else:
        assert outcomes[Outcome.EXPIRED] == 0


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.floats(0, 30), st.integers(1, 3000), st.integers(1, 3), st.booleans()), min_size=1, max_size=60
    ),
    concurrency=st.integers(1, 3),
    replicas=st.integers(1, 4),
    speed=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_a_request_that_is_alone_takes_what_its_scheduler_would_make_of_it(
    requests: list[tuple[float, int, int, bool]], concurrency: int, replicas: int, speed: float
) -> None:
    """Against a simulation in which every request goes through a scheduler."""
    requests.sort()
    arrivals, tokens, rows, bulk = (np.asarray(column) for column in zip(*requests, strict=True))
    trace = Sizes(lambda n, _: tokens).trace("drawn", 60.0, arrivals.astype(float), 0, rows=rows, bulk=bulk)
    batching = BatchingConfig(max_batch_size=4, concurrency=concurrency)
    cost = CostModel(start_s=0.2, token_s=0.001, pair_s=1e-7)
    quick, thorough = EncoderModel(cost, batching, PATIENT), Thorough(cost, batching, PATIENT)
    one, other = (
        play(trace, FixedReplicas(replicas), setting(model, site=Site(speed=speed))) for model in (quick, thorough)
    )
    np.testing.assert_allclose(one.latencies_s, other.latencies_s, rtol=1e-9, atol=1e-9)


class Thorough(EncoderModel):
    """Its schedulers see every request."""

    def undisturbed_s(self, rows: Sequence[SizedRow]) -> float | None:
        return None


def test_the_same_seed_gives_the_same_day_and_another_one_does_not() -> None:
    def played(seed: int) -> Played:
        trace = named("day:1-3", 2, Sizes(lambda n, s: np.random.default_rng(s).integers(1, 900, n)), seed)
        assert trace is not None
        return play(trace, Scripted((0, 1), (1000, 2), (3000, 1)), setting(servers()))

    one, again, other = played(1), played(1), played(2)
    np.testing.assert_array_equal(one.latencies_s, again.latencies_s)
    assert (one.series, one.replica_s, one.machine_s) == (again.series, again.replica_s, again.machine_s)
    assert len(one.trace) != len(other.trace) or not np.array_equal(one.latencies_s, other.latencies_s)
