"""Cluster: runs `sextet serve` for a measurement, with the shipped cluster.yaml cut down to the measured tasks."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from benchmarks.figures.result import ROOT
from deployments.cluster.ray_environment import spare_port
from deployments.config import cut_down, located, read_yaml, user_configs
from pipelines.errors import SextetError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.tasks import text_classification, text_generation, translation
from pipelines.tasks.task import Task

CLASSIFY, TRANSLATE, WRITE = text_classification.TASK, translation.TASK, text_generation.TASK
"""The tasks that suites measure."""
SHIPPED = ROOT / "cluster.yaml"
STOP_S = 60.0
NOOP = "noop"
NOOP_APPLICATION = {
    "name": NOOP,
    "route_prefix": f"/{NOOP}",
    "import_path": "benchmarks.suites.noop:app",
    "deployments": [
        {
            "name": NOOP,
            "max_ongoing_requests": 1000,
            "ray_actor_options": {"num_cpus": 0.1},
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        }
    ],
}


class ClusterError(SextetError):
    """`sextet serve` ended before it was ready; its own message is on stderr."""


@dataclass(frozen=True)
class Running:
    """A cluster that answers at `http://127.0.0.1:port`; it took `ready_s` from the command to that."""

    port: int
    process_id: int
    ready_s: float


def shipped_user_config(task: Task) -> dict[str, Any]:
    """The `user_config` of a task in the shipped cluster.yaml, with the absolute path of its model."""
    user_config: dict[str, Any] = user_configs(located(SHIPPED))[task.name]
    return user_config


def measured_cluster(
    models: Mapping[str, Path],
    threads: int | None = None,
    *,
    noop: bool = False,
    slots: Mapping[str, SlotsConfig] | None = None,
) -> dict[str, Any]:
    """The shipped configuration of the tasks of `models`: one replica each, nothing scales during a measurement.

    With `noop`, a replica that does nothing is served at /noop. `threads` and a task's `slots` replace what is shipped.
    """
    cluster = cut_down(read_yaml(SHIPPED), models)
    for application in cluster["applications"]:
        (deployment,) = application["deployments"]
        deployment.pop("autoscaling_config", None)
        deployment["num_replicas"] = 1
        user_config = deployment["user_config"]
        user_config["model"] = str(models[application["name"]].resolve())
        user_config.pop("source", None)
        if threads is not None:
            user_config["threads"] = threads
        if slots and application["name"] in slots:
            user_config["slots"] = asdict(slots[application["name"]])
    return {**cluster, "applications": [*cluster["applications"], *([NOOP_APPLICATION] if noop else [])]}


@contextmanager
def running(configuration: Mapping[str, Any], folder: Path) -> Iterator[Running]:
    """Serve `configuration`, written to `folder`, until the end of the block; raises ClusterError."""
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(dict(configuration)), encoding="utf-8")
    port = spare_port()
    command = [sys.executable, "-m", "sextet", "serve", str(path), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    started_at = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        _wait_until_ready(process, command)
        yield Running(port, process.pid, perf_counter() - started_at)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_S)


def _wait_until_ready(process: "subprocess.Popen[str]", command: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready "):
            return
    raise ClusterError(f"{shlex.join(command)} ended before it was ready; its own message is above")
