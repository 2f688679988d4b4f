import pytest

from benchmarks.scenarios import ScenarioConfig, server
from benchmarks.search import Trial, highest_rate
from pipelines.errors import ConfigurationError
from tests.benchmarks.loads import load_on
from tests.benchmarks.local_server import LocalServer, at_once, one_at_a_time


@pytest.mark.parametrize("capacity", [3.0, 40.0, 74.0, 99.0])
def test_the_search_ends_within_its_resolution_of_the_capacity(capacity: float) -> None:
    rate, trials = highest_rate(lambda rate: Trial(rate, rate <= capacity), upper_per_s=100.0, resolution=0.03)

    assert 0.95 * capacity <= rate <= capacity
    assert len({trial.rate_per_s for trial in trials}) < 12


def test_one_bad_moment_of_the_machine_does_not_end_the_search() -> None:
    moments = iter([False])

    rate, _ = highest_rate(lambda rate: Trial(rate, next(moments, rate <= 70)), upper_per_s=100.0)

    assert rate > 66


def test_a_server_that_never_meets_the_objective_has_no_rate() -> None:
    assert highest_rate(lambda rate: Trial(rate, False), upper_per_s=100.0)[0] == 0.0


def test_the_server_scenario_finds_the_capacity_of_a_real_server() -> None:
    with LocalServer(one_at_a_time(0.01)) as local:
        load = load_on(local, duration_s=1.5, warm_up_s=0.2, slo_s=0.25)
        config = ScenarioConfig(load, repetitions=1, processes=1)
        outcome = server(config, raw=None, say=lambda _line: None)

    (rate_per_s,) = outcome.figures["rate_per_s"]
    assert 30 < rate_per_s < 115  # its capacity is 100/s at most, and less on a busy machine


def test_the_server_scenario_needs_an_objective() -> None:
    with LocalServer(at_once) as local, pytest.raises(ConfigurationError, match="--slo-ms"):
        server(ScenarioConfig(load_on(local)), raw=None, say=lambda _line: None)
