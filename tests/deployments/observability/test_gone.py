"""Metrics of replicas that have ended disappear, whatever kind they are; those of others stay."""

import inspect
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray.serve._private import replica as ray_replica

from deployments.cluster.ray_environment import TUNED
from deployments.observability.gone import SIGN, SILENT_S, Detector, Signs, watch


class Recorder:
    """As Ray's agent gets what processes report."""

    def set_metric_value(self, name: str, tags: dict[str, str], value: float) -> None:
        pass


class Agent:
    """One that hears of replicas, at times of its own."""

    def __init__(self) -> None:
        self.now, self.registry = 0.0, CollectorRegistry()

        class Heard(Recorder):
            pass

        watch(Heard, self.registry, Signs(lambda: self.now))
        self._recorder = Heard()

    def report(self, replica: str, name: str = SIGN) -> None:
        self._recorder.set_metric_value(name, {"replica": replica, "WorkerId": f"worker-{replica}"}, 1.0)

    def shown(self) -> str:
        return generate_latest(self.registry).decode()


@pytest.fixture
def agent() -> Agent:
    """With all kinds of metrics of the replicas `old` and `new`, and of a process that is none."""
    agent = Agent()
    requests = Counter("requests", "", ["replica", "WorkerId"], registry=agent.registry)
    batches = Histogram("batches", "", ["replica", "WorkerId"], registry=agent.registry)
    calls = Counter("calls", "", ["WorkerId"], registry=agent.registry)
    starts = Counter("starts", "", ["replica", "WorkerId"], registry=agent.registry)
    tasks = Gauge("tasks", "", ["Name", "WorkerId"], registry=agent.registry)
    for one in ("old", "new"):
        requests.labels(one, f"worker-{one}").inc()
        batches.labels(one, f"worker-{one}").observe(3)
        calls.labels(f"worker-{one}").inc()
        starts.labels(one, "controller").inc()
        tasks.labels(f"SERVE_REPLICA::a#b#{one}:ServeReplica:a:b.__init__", "controller").set(1)
    calls.labels("controller").inc()
    return agent


def test_all_that_is_left_of_a_replica_disappears_after_its_last_sign_of_life(agent: Agent) -> None:
    whole = agent.shown()
    for one in ("old", "new"):
        agent.report(one)
    agent.now = SILENT_S
    agent.report("new")
    assert agent.shown() == whole

    agent.now = SILENT_S + 1

    assert agent.shown() == "".join(line for line in whole.splitlines(keepends=True) if "old" not in line)
    assert "old" in whole
    assert SILENT_S < 5 * 60


def test_what_others_report_of_a_replica_is_no_sign_of_its_life(agent: Agent) -> None:
    agent.report("old")
    agent.now = SILENT_S + 1
    agent.report("old", "serve_deployment_replica_healthy")

    assert "old" not in agent.shown()


def test_nothing_disappears_where_no_replica_was_heard_of(agent: Agent) -> None:
    whole = agent.shown()
    agent.now = 1e9

    assert agent.shown() == whole


def test_ray_reports_the_sign_and_loads_the_detector() -> None:
    assert f'"{SIGN}"' in inspect.getsource(ray_replica)
    (found,) = entry_points(group="opentelemetry_resource_detector", name="sextet")
    assert found.load() is Detector
    script = """
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder
from deployments.observability import gone
OpenTelemetryMetricRecorder(gauge_metric_ttl_seconds=1.0)
print(OpenTelemetryMetricRecorder.set_metric_value.__module__)
"""
    name = "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"
    ran = subprocess.run([sys.executable, "-c", script], env={name: TUNED[name]}, capture_output=True, text=True)
    assert ran.stdout.strip() == "deployments.observability.gone", ran.stderr
