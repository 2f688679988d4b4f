"""The policy that scales on a service level, on what simulated replicas say of themselves."""

from typing import Any

import numpy as np
import pytest

from deployments.scaling.options import AUTOSCALER
from pipelines.errors import ConfigurationError
from pipelines.scheduling.scheduler import QueueConfig
from planning.deciding.level import configured_level, level_for, level_rules
from planning.deciding.policy import FixedReplicas, RayRules
from planning.simulated.fleet import SPEAKERS, Fleet, Outcome, Site
from planning.simulated.loop import SimulatedLoop
from planning.simulated.simulation import Played, Setting, play
from planning.traces.trace import Sizes, Trace, named
from tests.planning.simulating import constant, servers

BOUNDS = {"min_replicas": 1, "max_replicas": 40}
SLO_MS = 3000.0
SITE = Site(start_s=5.0)


def scaled(trace: Trace, **changed: Any) -> Played:
    rules = level_rules("level", level_for(SLO_MS, 0.9, SITE.start_s), BOUNDS | changed)
    return play(trace, rules, Setting(servers(), SITE, 0.0, rules.metrics_interval_s, rules.look_back_s))


def burst(lowest: float, highest: float, hours: float = 2.0) -> Trace:
    """Requests that take half a second each."""
    found = named(f"burst:{lowest}-{highest}", hours, Sizes(lambda n, _: np.full(n, 500)), 0)
    assert found is not None
    return found


def test_it_holds_the_level_with_fewer_replicas_than_the_peak_takes() -> None:
    trace = burst(0.5, 8)
    played = scaled(trace)
    peak = play(trace, FixedReplicas(6), Setting(servers(), SITE, 0.0))
    assert played.within(SLO_MS / 1000) >= 0.9
    assert peak.within(SLO_MS / 1000) >= 0.9
    assert played.replica_s < 0.6 * peak.replica_s
    inside = [one.running for one in played.series if 3400 < one.at_s < 3900]
    after = [one.running for one in played.series if one.at_s > 5000]
    assert max(inside) >= 4
    assert max(after) <= 2


def test_it_stays_within_its_bounds_and_starts_at_zero_for_the_first_request() -> None:
    assert scaled(burst(1, 8, 0.5), max_replicas=2).most_replicas <= 3  # one may still drain
    played = scaled(constant(0.02, 1, tokens=500), min_replicas=0)
    assert played.count(Outcome.ANSWERED) == len(played.trace)
    assert played.series[0].running == 0
    assert played.latencies_s[0] >= SITE.start_s


def test_the_same_trace_gives_the_same_decisions() -> None:
    one, other = scaled(burst(1, 6, 0.5)), scaled(burst(1, 6, 0.5))
    assert one.series == other.series


def test_replicas_say_what_they_do() -> None:
    loop = SimulatedLoop()
    with loop.running():
        model = servers(queue=QueueConfig(max_queue_s=1.0))
        fleet = Fleet(loop, model, SITE, lambda number, latency_s, outcome: None, records=True)
        fleet.place(2)
        for number in range(20):  # two a second, half a second each, for two replicas: half busy
            loop.advance(number / 2)
            fleet.submit(number, model.request(1, 500, 0), float("inf"), False)
        loop.advance(10.0)
        said = fleet.signals()
    assert len(said) == 2
    for one in said.values():
        assert one.requests_per_s == pytest.approx(1.0)
        assert one.load == pytest.approx(0.5, rel=0.1)
        assert one.service_s == pytest.approx(0.5, rel=0.1)
        assert one.response_s[0.9] == pytest.approx(0.5)


def test_every_replica_of_a_large_fleet_says_something() -> None:
    loop = SimulatedLoop()
    with loop.running():
        fleet = Fleet(loop, servers(), SITE, lambda number, latency_s, outcome: None, records=True)
        fleet.place(3 * SPEAKERS + 7)
        assert len(fleet.signals()) == 3 * SPEAKERS + 7
        assert len({id(one) for one in fleet.signals().values()}) >= SPEAKERS


def test_the_level_of_a_file_is_read_as_the_autoscaler_reads_it() -> None:
    policy = {"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": 700, "quantile": 0.95, "down_after_s": 30}}
    level = configured_level(policy)
    assert (level.slo_ms, level.quantile, level.down_after_s) == (700, 0.95, 30)
    with pytest.raises(ConfigurationError, match="policy_function is 'a:b'; allowed: deployments.scaling"):
        configured_level({"policy_function": "a:b"})
    with pytest.raises(ConfigurationError, match="slo_m"):
        configured_level({"policy_function": AUTOSCALER, "policy_kwargs": {"slo_m": 3}})


@pytest.mark.parametrize(("asked", "recorded"), [(0.9, 0.9), (0.92, 0.95), (0.5, 0.5), (0.999, 0.99)])
def test_a_quantile_that_nobody_records_becomes_the_next_that_somebody_does(asked: float, recorded: float) -> None:
    assert level_for(500, asked, 8).quantile == recorded


def test_rays_own_delays_do_not_come_on_top() -> None:
    rules = level_rules("level", level_for(500, 0.9, 8), BOUNDS)
    assert isinstance(rules, RayRules)
    assert (rules.metrics_interval_s, rules.look_back_s, rules.reads_signals) == (1.0, 4.0, True)
