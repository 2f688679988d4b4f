"""Cluster: a real `sextet serve` for a measurement, of the shipped cluster.yaml cut down to what is measured."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.figures.report import ROOT
from pipelines.errors import SextetError
from pipelines.generation.slots.config import SlotsConfig

SHIPPED = ROOT / "cluster.yaml"
STOP_S = 60.0
NOOP = {
    "name": "noop",
    "route_prefix": "/noop",
    "import_path": "benchmarks.suites.noop:app",
    "deployments": [
        {
            "name": "noop",
            "max_ongoing_requests": 1000,
            "ray_actor_options": {"num_cpus": 0.1},
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        }
    ],
}


class ClusterError(SextetError):
    """`sextet serve` ended before it was ready; it has said why."""


@dataclass(frozen=True)
class Running:
    """A cluster that answers at `http://127.0.0.1:port`."""

    port: int
    process_id: int


def shipped_user_config(task: str) -> dict[str, Any]:
    """What the shipped cluster says of a task's model and how it is served."""
    applications = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["applications"]
    (deployment,) = next(one["deployments"] for one in applications if one["name"] == task)
    user_config: dict[str, Any] = deployment["user_config"]
    return user_config


def cut_down(
    models: Mapping[str, Path],
    threads: int | None = None,
    *,
    noop: bool = False,
    slots: Mapping[str, SlotsConfig] | None = None,
) -> dict[str, Any]:
    """The shipped configuration of the tasks of `models`: one replica each, nothing scales during a measurement.

    With `noop`, a replica that does nothing is served at /noop. `threads` and a task's `slots` replace what is shipped.
    """
    shipped = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    kept = []
    for application in shipped["applications"]:
        if application["name"] in models:
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
            kept.append(application)
    return {**shipped, "applications": [*kept, *([NOOP] if noop else [])]}


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(configuration: Mapping[str, Any], folder: Path) -> Iterator[Running]:
    """Serve `configuration`, written to `folder`, until the end of the block; raises ClusterError."""
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(dict(configuration)), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "sextet", "serve", str(path), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        _wait_until_ready(process, command)
        yield Running(port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_S)


def _wait_until_ready(process: "subprocess.Popen[str]", command: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready "):
            return
    raise ClusterError(f"{shlex.join(command)} ended before it was ready; its own message is above")
