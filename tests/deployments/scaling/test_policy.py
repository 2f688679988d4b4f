"""How many replicas a service level needs, decided from signals and times alone."""

from dataclasses import replace

import pytest

from deployments.scaling.daily import DailyPattern
from deployments.scaling.level import DAY_S, ServiceLevel
from deployments.scaling.policy import Decision, Observation, ServiceLevelPolicy
from deployments.scaling.signals import ReplicaSignals
from pipelines.errors import ConfigurationError

LEVEL = ServiceLevel(slo_ms=1000, down_after_s=30, zero_after_s=60, trend_s=20)
BUSY = ReplicaSignals(requests_per_s=8.0, load=0.8, service_s=0.1, own_s=0.1, inside=1.0, utilization=0.8)
CALM = ReplicaSignals(requests_per_s=1.0, load=0.1, service_s=0.1, own_s=0.1, utilization=0.1)
IDLE = ReplicaSignals()


def seen(now_s: float, *signals: ReplicaSignals | None, target: int | None = None, least: int = 1) -> Observation:
    """Each signal is of a replica that runs; None where it says nothing."""
    known = {str(number): one for number, one in enumerate(signals) if one is not None}
    return Observation(now_s, len(signals), len(signals) if target is None else target, least, 100, known)


def after(policy: ServiceLevelPolicy, seconds: int, *signals: ReplicaSignals | None, **given: int) -> Decision:
    """The last decision after so many seconds of the same signals, from 1000 s on."""
    start_s = 1000 if policy._seen_at is None else int(policy._seen_at) + 1
    for now_s in range(start_s, start_s + seconds):
        decision = policy.decide(seen(now_s, *signals, **given))
    return decision


def test_enough_is_left_as_it_is() -> None:
    assert after(ServiceLevelPolicy(LEVEL), 60, CALM, CALM).replicas <= 2
    assert after(ServiceLevelPolicy(LEVEL), 60, CALM).replicas == 1


def test_more_load_is_answered_with_replicas_at_once() -> None:
    flood = replace(BUSY, requests_per_s=400.0, load=4.0)
    assert ServiceLevelPolicy(LEVEL).decide(seen(1000.0, flood)).replicas >= 5


def test_work_that_waits_beyond_the_level_is_answered_with_replicas_at_once() -> None:
    policy = ServiceLevelPolicy(LEVEL)
    assert policy.decide(seen(1000.0, CALM)).replicas == 1
    decision = policy.decide(seen(1001.0, replace(CALM, queued_s=30.0)))
    assert decision.replicas >= 4  # 30 s of work within `catch_up_s`, and the load itself
    assert "30.0 s of work wait" in decision.reason


def test_a_few_requests_more_by_chance_change_nothing() -> None:
    policy = ServiceLevelPolicy(LEVEL)
    after(policy, 20, CALM)
    blip, crowd = (replace(CALM, requests_per_s=one, load=1.2) for one in (0.2, 12.0))  # 2 and 120 requests
    assert policy.decide(seen(1020.0, blip)).replicas == 1
    assert policy.decide(seen(1021.0, crowd)).replicas == 2


def test_fewer_replicas_only_after_they_were_enough_for_a_while() -> None:
    policy = ServiceLevelPolicy(LEVEL)
    assert after(policy, 20, BUSY, BUSY, BUSY).replicas >= 3
    assert after(policy, 25, IDLE, IDLE, IDLE).replicas == 3
    assert after(policy, 40, IDLE, IDLE, IDLE).replicas == 1


def test_a_tighter_level_takes_more_replicas() -> None:
    loose = after(ServiceLevelPolicy(replace(LEVEL, slo_ms=5000)), 30, *[BUSY] * 4).replicas
    tight = after(ServiceLevelPolicy(replace(LEVEL, slo_ms=150)), 30, *[BUSY] * 4).replicas
    assert tight > loose


def test_slots_are_shared_by_sequences_that_do_not_wait() -> None:
    """At half of its slots a generator makes nobody wait; one server at half of its time does."""
    slots = ReplicaSignals(requests_per_s=1.0, load=0.5, servers=8.0, service_s=4.0, own_s=0.2, inside=4.0)
    assert after(ServiceLevelPolicy(LEVEL), 30, slots).replicas == 1
    assert after(ServiceLevelPolicy(LEVEL), 30, replace(slots, servers=1.0)).replicas > 1


def test_a_level_that_is_missed_although_nothing_starts_raises_the_margin() -> None:
    policy = ServiceLevelPolicy(LEVEL)
    missed = replace(BUSY, load=0.5, ended=80.0, response_s={0.9: 1.5})
    assert after(policy, 15, missed, missed).replicas <= 2
    assert after(policy, 120, missed, missed).replicas > 2
    assert policy.margin > 1


def test_tokens_that_come_too_slowly_raise_the_margin() -> None:
    policy = ServiceLevelPolicy(replace(LEVEL, inter_token_ms=50))
    slow = ReplicaSignals(1.0, 0.9, servers=8.0, service_s=4.0, ended=10.0, inter_token_s={0.9: 0.2})
    assert after(policy, 120, slow).replicas > 1


def test_the_quantile_that_counts_is_the_one_of_the_level() -> None:
    signals = replace(BUSY, load=0.3, ended=80.0, response_s={0.5: 0.1, 0.9: 0.2, 0.99: 3.0})
    usual, strict = ServiceLevelPolicy(LEVEL), ServiceLevelPolicy(replace(LEVEL, quantile=0.99))
    for policy in (usual, strict):
        after(policy, 60, signals)
    assert usual.margin == 1 < strict.margin
    for _ in range(3):
        after(strict, 300, replace(signals, response_s={0.99: 0.1}))
    assert strict.margin == 1, "and it goes once the level is held easily"


def test_it_holds_where_replicas_say_nothing() -> None:
    policy = ServiceLevelPolicy(LEVEL)
    after(policy, 20, BUSY, BUSY, BUSY)
    assert after(policy, 200, None, None, None) == Decision(3, "held: no replica says anything")
    assert after(policy, 200, IDLE, IDLE, None) == Decision(3, "held: 1 of 3 replicas say nothing")
    assert after(policy, 20, IDLE, IDLE, IDLE).replicas == 3, "time without data is no time in which fewer were enough"
    assert after(policy, 60, IDLE, IDLE, IDLE).replicas == 1


def test_silent_replicas_do_not_hide_that_more_are_needed() -> None:
    assert after(ServiceLevelPolicy(LEVEL), 20, replace(BUSY, load=3.0), None).replicas > 4


def test_what_starts_is_waited_for() -> None:
    """While replicas start, those that run say too much: the target does not grow without bounds."""
    flood = replace(BUSY, requests_per_s=40.0, load=4.0)
    decisions = {after(ServiceLevelPolicy(LEVEL), n, flood, target=6).replicas for n in (1, 5, 20)}
    assert len(decisions) == 1


def test_the_last_replica_goes_after_a_while_without_requests() -> None:
    policy = ServiceLevelPolicy(LEVEL)
    assert after(policy, 30, CALM, least=0).replicas == 1
    assert after(policy, 50, IDLE, least=0).replicas == 1
    assert after(policy, 60, IDLE, least=0).replicas == 0
    assert after(ServiceLevelPolicy(LEVEL), 500, IDLE, least=1).replicas == 1


def test_the_last_replica_does_not_wait_for_what_others_wait_for() -> None:
    policy = ServiceLevelPolicy(replace(LEVEL, down_after_s=600, zero_after_s=60))
    assert after(policy, 30, CALM, least=0).replicas == 1
    assert after(policy, 70, IDLE, least=0).replicas == 0


def test_a_request_that_is_inside_keeps_its_replica() -> None:
    """A stream of an hour, for example: nothing has arrived and nothing has ended."""
    assert after(ServiceLevelPolicy(LEVEL), 500, replace(IDLE, inside=1.0), least=0).replicas == 1


def test_a_request_without_a_replica_starts_one() -> None:
    nothing = Observation(1000.0, running=0, target=0, least=0, most=4)
    policy = ServiceLevelPolicy(LEVEL)
    assert policy.decide(nothing).replicas == 0
    assert policy.decide(replace(nothing, waiting=100.0)).replicas == 1
    assert policy.decide(replace(nothing, target=1)).replicas == 1, "it is starting"


def test_a_replica_that_somebody_woke_stays_for_a_while_though_nobody_waited_for_it() -> None:
    """Ray Serve starts it without asking the policy; the client's deadline may have run out meanwhile."""
    policy = ServiceLevelPolicy(LEVEL)
    after(policy, 200, IDLE, least=0)
    policy.decide(Observation(5000.0, running=0, target=0, least=0, most=4))
    woken = [policy.decide(seen(9000.0 + n, IDLE, least=0)).replicas for n in range(70)]
    assert (woken[0], woken[50], woken[69]) == (1, 1, 0)


def test_bounds_hold_and_are_said() -> None:
    few = replace(seen(1000.0, replace(BUSY, requests_per_s=900.0, load=9.0)), most=4)
    decision = ServiceLevelPolicy(LEVEL).decide(few)
    assert decision.replicas == 4
    assert decision.reason.endswith("allowed: 1 to 4")


def test_never_fewer_than_this_time_of_the_day_took() -> None:
    level, pattern = replace(LEVEL, start_s=600), DailyPattern(DAY_S)
    nine = 9 * 3600.0
    for day in range(3):
        pattern.note(day * DAY_S + nine, 5)
        pattern.note(day * DAY_S + nine + 900, 1)
    policy = ServiceLevelPolicy(level, pattern)
    assert policy.decide(seen(3 * DAY_S + nine - 1800, CALM)).replicas == 1
    ahead = policy.decide(seen(3 * DAY_S + nine - 300, CALM))
    assert (ahead.replicas, ahead.reason) == (5, "this time of the day took 5"), "they start before they are needed"
    assert policy.decide(seen(3 * DAY_S + nine + 60, CALM)).replicas == 5


def test_a_pattern_does_not_feed_itself() -> None:
    """What is recorded is what the work took, not what the pattern kept."""
    pattern = DailyPattern(DAY_S)
    for day in range(7):
        pattern.note(day * DAY_S + 100, 5)
        pattern.note(day * DAY_S + 1000, 0)
    for day in range(7, 14):
        policy = ServiceLevelPolicy(LEVEL, pattern)
        policy.decide(seen(day * DAY_S + 100, CALM))
        policy.decide(seen(day * DAY_S + 1000, CALM))
    assert pattern.needs(14 * DAY_S + 100) == 1


def test_the_same_observations_give_the_same_decisions() -> None:
    observations = [seen(1000.0 + n, replace(BUSY, load=n % 7 / 3), BUSY) for n in range(200)]
    first, second = ([policy.decide(one) for one in observations] for policy in map(ServiceLevelPolicy, [LEVEL] * 2))
    assert first == second


def test_thousands_of_replicas_take_as_many_as_their_load() -> None:
    decision = ServiceLevelPolicy(LEVEL).decide(replace(seen(1000.0, *[BUSY] * 2000), most=10_000))
    assert 1700 < decision.replicas < 1900


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "slo_ms is missing"),
        ({"slo_ms": 0}, "slo_ms is 0"),
        ({"slo_ms": 500, "quantil": 0.9}, "no key 'quantil' (did you mean 'quantile'?)"),
        ({"slo_ms": 500, "quantile": 0.8}, "quantile is 0.8; allowed: 0.5, 0.9, 0.95, 0.99"),
        ({"slo_ms": "fast"}, "slo_ms is 'fast'"),
        ({"slo_ms": 500, "max_utilization": 1.5}, "max_utilization is 1.5"),
    ],
)
def test_wrong_policy_kwargs_are_refused_in_one_line(given: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ServiceLevel.from_policy_kwargs(given, "policy_kwargs of translation")
    assert str(caught.value).startswith("policy_kwargs of translation")
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)
