"""Fixtures shared by all suites, how many processes run them, and how hard hypothesis looks for a failure."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from deployments.cluster.ray_environment import SPARE_PORTS
from tests import kept
from tests.tiny_checkpoints import tiny_checkpoint

FIRST_CHOSEN_PORT = SPARE_PORTS.start  # those that `spare_port` draws from; above them lie the system's own

# Tiny models: threads that spin for each other would take longer than the work. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# CI tries the same examples in every run, so that a change fails for what it changes; elsewhere each run tries others.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Several processes for `-m "not cluster"`; one for clusters, and for a few files, whose output is then seen.

    One more than there are cores: a third of the time a test waits for another process or a time limit.
    """
    everything = config.args == config.getini("testpaths") and not config.option.keyword
    if everything and config.option.markexpr == "not cluster":
        return min(len(os.sched_getaffinity(0)) + 1, 8)
    return 0


@pytest.fixture(autouse=True)
def _no_fixed_ports(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only `cluster` may listen where something else may listen already: the others take a port that is free."""
    bind = socket.socket.bind

    def chosen_by_the_system(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and 0 < address[1] < FIRST_CHOSEN_PORT:
            pytest.fail(f"binds the fixed port {address[1]}: bind port 0, or mark the test `cluster`")
        bind(self, address)

    # Not the fixture monkeypatch: that would be undone after those of the test's own fixtures.
    with pytest.MonkeyPatch.context() as patched:
        if request.node.get_closest_marker("cluster") is None:
            patched.setattr(socket.socket, "bind", chosen_by_the_system)
        yield


@pytest.fixture(scope="session")
def checkpoint() -> Callable[..., Path]:
    """`checkpoint(architecture, task, **changes)`: a tiny checkpoint's folder; to be read only, it outlives the run."""
    made_from = f"checkpoints-{kept.of_checkpoints()}"
    kept.tidy(made_from)

    def make(architecture: str, task: str, **changes: Any) -> Path:
        name = f"{architecture}-{task}-{kept.digest(repr(sorted(changes.items())))}"
        return kept.kept(made_from, name, lambda folder: tiny_checkpoint(architecture, task, folder, **changes))

    return make


@pytest.fixture(scope="session")
def exported(checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """`exported(architecture, task, precision="fp32", **changes)`: an artifact's folder, likewise.

    Changes that are options of an export (`optimize="O2"`) go there; the others change the tiny checkpoint, which
    `checkpoint` returns for the same arguments.
    """
    from export.build import ExportArgs, export_checkpoint

    made_from = f"artifacts-{kept.of_artifacts()}"
    kept.tidy(made_from)
    options = {field.name for field in fields(ExportArgs)}

    def make(architecture: str, task: str, precision: str = "fp32", **changes: Any) -> Path:
        asked = {name: value for name, value in changes.items() if name in options}
        changed = {name: value for name, value in changes.items() if name not in options}

        def export(folder: Path) -> None:
            source = checkpoint(architecture, task, **changed)
            output = folder / f"{architecture}-{task}"
            export_checkpoint(ExportArgs(str(source), task, output, precision=precision, **asked))

        name = f"{architecture}-{task}-{kept.digest(precision, repr(sorted(changes.items())))}"
        return kept.kept(made_from, name, export) / f"{architecture}-{task}"

    return make
