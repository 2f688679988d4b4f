"""Cluster: runs `sextet serve` for a measurement, with the shipped cluster.yaml cut down to the measured tasks."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from benchmarks.figures.result import ROOT
from deployments.cluster.ray_environment import spare_port
from deployments.config import cut_down, located, read_yaml, user_configs
from deployments.ingress.config import GATEWAY
from pipelines.errors import SextetError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.tasks import text_classification, text_generation, translation
from pipelines.tasks.task import Task

CLASSIFY, TRANSLATE, WRITE = text_classification.TASK, translation.TASK, text_generation.TASK
"""The tasks that suites measure."""
SHIPPED = ROOT / "cluster.yaml"
CONFIGURATION = "cluster.yaml"
STOP_S = 60.0
NOOP = "noop"
NOOP_APPLICATION = {
    "name": NOOP,
    "route_prefix": f"/{NOOP}",
    "import_path": "benchmarks.noop:app",
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
    """A cluster that answers at `http://127.0.0.1:port`; it took `ready_s` from the command to that.

    `progress` grows by every line that the launcher writes to stderr.
    """

    port: int
    process_id: int
    ready_s: float
    progress: list[str] = field(default_factory=list, repr=False)

    def said(self, beginning: str) -> list[str]:
        """The lines of the launcher's progress so far that begin so."""
        return [line for line in self.progress if line.startswith(beginning)]


def shipped_user_config(task: Task) -> dict[str, Any]:
    """The `user_config` of a task in the shipped cluster.yaml, with the absolute path of its model."""
    user_config: dict[str, Any] = user_configs(located(SHIPPED))[task.name]
    return user_config


def measured_cluster(
    models: Mapping[str, Path],
    threads: int | None = None,
    *,
    noop: bool = False,
    gateway: bool = False,
    slots: Mapping[str, SlotsConfig] | None = None,
) -> dict[str, Any]:
    """The shipped configuration of the tasks of `models`: one replica each, nothing scales during a measurement.

    With `noop`, a replica that does nothing is served at /noop; with `gateway`, /ready answers. `threads` and a task's
    `slots` replace what is shipped.
    """
    shipped = read_yaml(SHIPPED)
    cluster = cut_down(shipped, models)
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
    others = [*([NOOP_APPLICATION] if noop else []), *(cut_down(shipped, [GATEWAY])["applications"] if gateway else [])]
    return {**cluster, "applications": [*cluster["applications"], *others]}


@contextmanager
def running(configuration: Mapping[str, Any], folder: Path) -> Iterator[Running]:
    """Serve `configuration`, written to `folder`, until the end of the block; raises ClusterError."""
    path = folder / CONFIGURATION
    path.write_text(yaml.safe_dump(dict(configuration)), encoding="utf-8")
    port = spare_port()
    command = [sys.executable, "-m", "sextet", "serve", str(path), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    started_at = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    progress: list[str] = []
    reader = threading.Thread(target=_read_progress, args=(process, progress), daemon=True)
    reader.start()
    try:
        _wait_until_ready(process, command)
        yield Running(port, process.pid, perf_counter() - started_at, progress)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=STOP_S)
        reader.join(timeout=STOP_S)
        if process.stdout is not None:
            process.stdout.close()


def _read_progress(process: "subprocess.Popen[str]", progress: list[str]) -> None:
    """Pass the launcher's progress on, and keep it."""
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            progress.append(line.rstrip("\n"))
            print(line, end="", file=sys.stderr, flush=True)


def _wait_until_ready(process: "subprocess.Popen[str]", command: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready "):
            return
    raise ClusterError(f"{shlex.join(command)} ended before it was ready; its own message is above")
