"""Policies in simulated time: Ray Serve's own rules, and what holds for every policy."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve.config import AutoscalingConfig

from pipelines.errors import ConfigurationError
from planning.deciding.policy import FixedReplicas, RayRules, View

CONFIG = {
    "min_replicas": 1,
    "max_replicas": 10,
    "target_ongoing_requests": 4,
    "upscale_delay_s": 3,
    "downscale_delay_s": 20,
}


def view(at_s: float, ongoing: float, running: int, target: int | None = None, waiting: int = 0) -> View:
    return View(at_s, running, running if target is None else target, ongoing, waiting, dict)


def decided(rules: RayRules, ongoing: Iterator[float], steps: int) -> list[int]:
    """What it wants once a second, where replicas start and end at once."""
    found = [rules.first()]
    for at_s in range(steps):
        found.append(rules.replicas(view(at_s, next(ongoing), found[-1])))
    return found


def constant(value: float) -> Iterator[float]:
    while True:
        yield value


def test_ray_scales_to_its_target_after_its_delays() -> None:
    rules = RayRules("ray", CONFIG)
    up = decided(rules, constant(20.0), 8)
    assert (up[3], up[4], up[-1]) == (1, 5, 5)
    down = [rules.replicas(view(100 + at_s, 4.0, 5)) for at_s in range(25)]
    assert (down[19], down[20]) == (5, 1)


def test_ray_starts_one_for_a_request_at_zero_and_goes_back_to_zero() -> None:
    rules = RayRules("ray", CONFIG | {"min_replicas": 0, "downscale_to_zero_delay_s": 5})
    assert rules.first() == 0
    assert rules.replicas(view(0, 0, 0)) == 0
    assert rules.replicas(view(1, 0, 0, waiting=3)) == 1
    assert [rules.replicas(view(at_s, 0.0, 1)) for at_s in range(2, 8)] == [1, 1, 1, 1, 1, 0]


def test_the_settings_are_those_of_ray_serve() -> None:
    rules = RayRules("ray", CONFIG | {"look_back_period_s": 7, "initial_replicas": 3, "metrics_interval_s": 2})
    assert (rules.look_back_s, rules.metrics_interval_s, rules.first()) == (7, 2, 3)
    assert RayRules("ray", {}).look_back_s == AutoscalingConfig().look_back_period_s


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"min_replicas": 20}, "autoscaling_config: "), ({"max_replicas": 10**7}, "autoscaling_config.max_replicas is")],
)
def test_what_ray_serve_refuses_is_refused_in_one_line(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        RayRules("ray", CONFIG | changed)
    assert "\n" not in str(error.value)


def test_a_fixed_number_stays() -> None:
    policy = FixedReplicas(3)
    assert (policy.name, policy.first(), policy.replicas(view(0, 1e6, 1))) == ("static 3", 3, 3)


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(st.floats(0, 40), min_size=1, max_size=60),
    up_s=st.integers(0, 5),
    down_s=st.integers(0, 20),
    least=st.integers(1, 3),
)
def test_any_policy_stays_in_its_bounds_and_moves_only_after_the_delay(
    wanted: list[float], up_s: int, down_s: int, least: int
) -> None:
    config = CONFIG | {"upscale_delay_s": up_s, "downscale_delay_s": down_s, "min_replicas": least}
    asked = iter(wanted)
    rules = RayRules("any", config, lambda seen, least, most: next(asked))
    found = decided(rules, constant(1.0), len(wanted))
    assert all(least <= one <= 10 for one in found)
    lower_since: int | None = None
    for at_s, (before, after, want) in enumerate(zip(found, found[1:], wanted, strict=False)):
        lower_since = None if want >= before else at_s if lower_since is None else lower_since
        if after < before:
            assert lower_since is not None
            assert at_s - lower_since >= down_s
