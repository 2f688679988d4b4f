"""Subject: the cluster that is made to fail: its processes, its configuration, and what its launcher says."""

import copy
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from benchmarks.load.asker import Asker
from benchmarks.replicas import find, resident_bytes
from benchmarks.suites.cluster import CONFIGURATION, Running, running
from pipelines.errors import SextetError

APPLIED_S = 360.0  # a replica that ends may have five minutes for the requests inside
SETTLED_ANSWERS = 20
SETTLED_S = 120.0
POLL_S = 0.05
CONTROLLER, INGRESS = r"ray::ServeController", r"\S*haproxy .*-f "


class SubjectError(SextetError):
    """The cluster did not do what a fault needs: nothing was measured."""


class Subject:
    """A running cluster whose configuration can be changed while it serves."""

    def __init__(self, cluster: Running, configuration: Mapping[str, Any], folder: Path) -> None:
        self.port = cluster.port
        self._cluster = cluster
        self._configuration = copy.deepcopy(dict(configuration))
        self._file = folder / CONFIGURATION

    @classmethod
    @contextmanager
    def serving(cls, configuration: Mapping[str, Any], folder: Path) -> Iterator[Self]:
        with running(configuration, folder) as cluster:
            yield cls(cluster, configuration, folder)

    def replicas(self, application: str) -> list[int]:
        """Process ids of the replicas of an application."""
        return [pid for pid, name in find(self._cluster.process_id).items() if name == application]

    def resident_mib(self) -> float:
        """Memory of what a request goes through: all replicas, and HAProxy."""
        processes = [*find(self._cluster.process_id), *self.processes(INGRESS)]
        return sum(size for pid in processes if (size := resident_bytes(pid)) is not None) / 2**20

    def processes(self, pattern: str) -> list[int]:
        """Process ids below the launcher whose command line begins with `pattern`."""
        found = []
        for process in psutil.Process(self._cluster.process_id).children(recursive=True):
            try:
                if re.match(pattern, " ".join(process.cmdline())):
                    found.append(process.pid)
            except psutil.Error:  # it has ended
                continue
        return found

    def kill(self, process_ids: list[int]) -> None:
        """As a crash or the kernel would. Raises SubjectError where there is nothing to kill."""
        self._signal(process_ids, signal.SIGKILL)

    def hang(self, process_ids: list[int]) -> None:
        """Stop the processes, and return when Ray Serve has killed them; raises SubjectError."""
        self._signal(process_ids, signal.SIGSTOP)
        _wait_until(lambda: not any(map(psutil.pid_exists, process_ids)), "what hangs is not killed")

    @staticmethod
    def _signal(process_ids: list[int], number: int) -> None:
        if not process_ids:
            raise SubjectError("the process that a signal is for does not run")
        for process_id in process_ids:
            os.kill(process_id, number)

    def change(self, application: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Let `change` edit the deployment of an application, and return when the cluster runs so."""
        (deployment,) = next(
            one["deployments"] for one in self._configuration["applications"] if one["name"] == application
        )
        change(deployment)
        said = len(self._cluster.said("applied "))
        self._file.write_text(yaml.safe_dump(self._configuration), encoding="utf-8")
        os.kill(self._cluster.process_id, signal.SIGUSR1)

        def is_applied() -> bool:
            if refused := self._cluster.said("not applied"):
                raise SubjectError(refused[-1])
            return len(self._cluster.said("applied ")) != said

        _wait_until(is_applied, f"{application}: the change was not applied")

    def scale(self, application: str, replicas: int) -> None:
        """Change the number of replicas, and return when so many processes run."""
        self.change(application, lambda deployment: deployment.update(num_replicas=replicas))
        _wait_until(lambda: len(self.replicas(application)) == replicas, f"{application} has not {replicas} replicas")

    def replace(self, application: str) -> None:
        """Change what only a new replica can take up, and return when it runs."""
        before = set(self.replicas(application))
        self.change(application, _reserve_more)
        _wait_until(lambda: bool(set(self.replicas(application)) - before), f"{application} has no new replica")

    def stop(self) -> None:
        """Tell the launcher to end; the `with` block waits for it."""
        os.kill(self._cluster.process_id, signal.SIGTERM)

    def settle(self, path: str, body: bytes) -> None:
        """Return when requests are answered again, one after another; raises SubjectError."""
        asker, answered = Asker(self.port, 10.0), 0
        give_up_at = time.monotonic() + SETTLED_S
        while answered < SETTLED_ANSWERS:
            if time.monotonic() > give_up_at:
                raise SubjectError(f"{path} does not answer {SETTLED_S:.0f} s after the fault")
            try:
                asker.ask(path, body)
            except Exception:  # whatever the fault does to a request
                answered = 0
                time.sleep(POLL_S)
            else:
                answered += 1
        asker.close()


def _wait_until(happened: Callable[[], bool], otherwise: str) -> None:
    give_up_at = time.monotonic() + APPLIED_S
    while not happened():
        if time.monotonic() > give_up_at:
            raise SubjectError(f"{otherwise} after {APPLIED_S:.0f} s")
        time.sleep(POLL_S)


def _reserve_more(deployment: dict[str, Any]) -> None:
    options = deployment["ray_actor_options"]
    options["num_cpus"] = round(options["num_cpus"] + 0.01, 2)
