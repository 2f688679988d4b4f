"""The policy as Ray Serve's controller holds it: its own context, its own wrapper, what it pickles and keeps."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve._private.autoscaling_state import _apply_autoscaling_config, _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.scaling.autoscaler import ServiceLevelAutoscaler, observed
from deployments.scaling.level import DAY_S
from deployments.scaling.options import AUTOSCALER, DEFAULTS
from deployments.scaling.signals import ReplicaSignals

DEPLOYMENT = DeploymentID("text-classification", "text-classification")
FLOOD = ReplicaSignals(requests_per_s=300.0, load=3.0, service_s=0.01, own_s=0.01, inside=30.0, queued_s=20.0)


def config(**policy_kwargs: Any) -> AutoscalingConfig:
    policy = {"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": 500, **policy_kwargs}}
    return AutoscalingConfig(min_replicas=0, max_replicas=8, policy=policy, **DEFAULTS)


def context(now_s: float, *signals: ReplicaSignals | None, ago_s: float = 0.5, **changes: Any) -> AutoscalingContext:
    replicas = [ReplicaID(f"replica-{number}", DEPLOYMENT) for number in range(len(signals))]
    raw: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = {}
    for replica, said in zip(replicas, signals, strict=True):
        for name, value in ({} if said is None else said.metrics()).items():
            series = [TimeStampedValue(now_s - ago_s - 1, -1.0), TimeStampedValue(now_s - ago_s, value)]
            raw.setdefault(name, {})[replica] = series
    given: dict[str, Any] = {
        "deployment_id": DEPLOYMENT,
        "deployment_name": DEPLOYMENT.name,
        "app_name": DEPLOYMENT.app_name,
        "current_num_replicas": len(signals),
        "target_num_replicas": len(signals),
        "running_replicas": replicas,
        "total_num_requests": 0.0,
        "total_queued_requests": 0.0,
        "aggregated_metrics": {},
        "raw_metrics": raw,
        "capacity_adjusted_min_replicas": 0,
        "capacity_adjusted_max_replicas": 8,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": now_s,
        "config": config(),
    }
    return AutoscalingContext(**given | changes)


def test_ray_pickles_makes_and_asks_it_and_adds_no_delay() -> None:
    configured = config()
    kept = cloudpickle.loads(cloudpickle.dumps(configured))
    policy = _apply_autoscaling_config(_resolve_policy_callable(kept.policy))

    replicas, state = policy(context(1000.0, FLOOD))

    assert replicas >= 5
    assert isinstance(state, dict)


def test_the_newest_signals_count_and_old_ones_are_missing() -> None:
    fresh = observed(context(1000.0, FLOOD, FLOOD), stale_s=15)
    stale = observed(context(1000.0, FLOOD, FLOOD, ago_s=16.0), stale_s=15)

    assert fresh.replicas == {"replica-0": FLOOD, "replica-1": FLOOD}
    assert (stale.running, stale.replicas) == (2, {})


def test_rays_count_of_requests_matters_without_a_replica_only() -> None:
    """It may hold streams that ended long ago."""
    assert observed(context(1000.0, FLOOD, total_num_requests=500.0), stale_s=15).waiting == 0
    assert observed(context(1000.0, total_num_requests=100.0), stale_s=15).waiting == 100
    policy = _apply_autoscaling_config(ServiceLevelAutoscaler(slo_ms=500, zero_after_s=30, down_after_s=10))
    idle = [policy(context(1000.0 + n, ReplicaSignals(), total_num_requests=500.0))[0] for n in range(60)]
    assert (idle[0], idle[-1]) == (1, 0)


def test_replicas_that_said_no_numbers_yet_are_missing() -> None:
    replica = ReplicaID("replica-0", DEPLOYMENT)
    raw = {"work_s": {replica: [TimeStampedValue(1000.0, 0.0)]}, "load": {replica: []}}
    assert observed(context(1000.0, None, raw_metrics=raw), stale_s=15).replicas == {}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Ray Serve's logger, which hands nothing on, is told."""
    ray_serve = logging.getLogger("ray.serve")
    ray_serve.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "ray.serve")
    yield caplog
    ray_serve.removeHandler(caplog.handler)


def test_a_change_is_logged_once_with_its_reason(logged: pytest.LogCaptureFixture) -> None:
    autoscaler = ServiceLevelAutoscaler(slo_ms=500)
    for now_s in range(1000, 1005):
        replicas, _ = autoscaler(context(float(now_s), FLOOD))
    (line,) = [record.getMessage() for record in logged.records]
    assert line.startswith(f"text-classification:text-classification: 1 -> {replicas} replicas: 20.0 s of work wait")


def test_wrong_policy_kwargs_are_logged_and_hold_what_there_is(logged: pytest.LogCaptureFixture) -> None:
    """An error would stop the loop of Ray Serve's controller, and with it every application."""
    policy = _apply_autoscaling_config(_resolve_policy_callable(config(slo=1).policy))
    assert policy(context(1000.0, FLOOD, FLOOD, FLOOD))[0] == 3
    assert policy(context(1001.0, ReplicaSignals()))[0] == 1
    (line,) = [one.getMessage() for one in logged.records if one.levelno == logging.ERROR]
    assert line.startswith("replicas stay as many as they are: policy_kwargs has no key 'slo'")


def test_signals_that_make_no_sense_hold_what_there_is(logged: pytest.LogCaptureFixture) -> None:
    """Another version of a replica may say anything."""
    autoscaler = ServiceLevelAutoscaler(slo_ms=500)
    assert autoscaler(context(1000.0, ReplicaSignals(load=float("nan")), ReplicaSignals()))[0] == 2
    assert autoscaler(context(1001.0, ReplicaSignals(load=float("inf")), ReplicaSignals()))[0] == 2
    assert autoscaler(context(1002.0, ReplicaSignals(load=1e300, requests_per_s=1e9), FLOOD))[0] == 8
    assert observed(context(1003.0, ReplicaSignals(load=float("nan"))), stale_s=15).replicas == {}


def test_what_the_work_took_is_kept_from_one_controller_to_the_next(tmp_path: Path) -> None:
    level = {"slo_ms": 500, "pattern": str(tmp_path / "patterns"), "start_s": 1}
    first = ServiceLevelAutoscaler(**level)
    first(context(9 * 3600.0, FLOOD))
    first(context(9 * 3600.0 + 900, FLOOD))
    (file,) = (tmp_path / "patterns").iterdir()
    second = ServiceLevelAutoscaler(**level)
    assert second(context(DAY_S + 9 * 3600.0, ReplicaSignals()))[0] >= 5
    file.write_text("{")
    assert ServiceLevelAutoscaler(**level)(context(DAY_S + 9 * 3600.0, ReplicaSignals()))[0] == 1
