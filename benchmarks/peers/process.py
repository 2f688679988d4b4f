"""Process: starts a peer's service, waits until it answers, and ends it with all of its child processes."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import psutil

from benchmarks.peers.peer import Peer, PeerError, Service, Way
from deployments.cluster.ray_environment import spare_port
from pipelines.tasks.text_classification import TASK

START_S = 420.0  # some make their model first
POLL_S = 0.5
STOP_S = 20.0
SETTINGS = ("RAY_", "PYTHON")  # prefixes of variables that are not passed on


@contextmanager
def running(peer: Peer, model: Path, way: Way, answers: Callable[[int], None]) -> Iterator[int]:
    """The port at which `peer` serves `model` inside the block; raises PeerError where it does not start.

    `answers(port)` is called until it returns. It raises OSError or HTTPException while the service starts, and
    PeerError where its answers are wrong.
    """
    with started(peer, _settings(peer, model, way), answers) as port:
        yield port


@contextmanager
def started(peer: Service, settings: Mapping[str, str], answers: Callable[[int], None]) -> Iterator[int]:
    """The port of a service inside the block, as `running` has it; `settings` and PEER_PORT are in its environment."""
    port = spare_port()
    with tempfile.TemporaryDirectory(prefix="sextet-peer-") as folder:
        log = Path(folder) / "log.txt"
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [str(peer.python), str(peer.script)],
                cwd=folder,
                env=_inherited(peer) | {"PEER_PORT": str(port)} | dict(settings),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt of the benchmark does not reach the service: it is ended below
            )
        try:
            _wait(process, lambda: answers(port), log)
            yield port
        finally:
            _stop(process)


def _inherited(peer: Service) -> dict[str, str]:
    foreign = SETTINGS[:1] if peer.needs else SETTINGS  # a peer in the project's environment needs PYTHONPATH
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return inherited | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def _settings(peer: Peer, model: Path, way: Way) -> dict[str, str]:
    asked = {"PEER_TASK": TASK.name, "PEER_MODEL": str(model.resolve())}
    return asked | {"PEER_BATCH_SIZE": str(way.batch_size), "PEER_WORKERS": str(way.workers)} | dict(peer.settings)


def _wait(process: "subprocess.Popen[bytes]", answers: Callable[[], None], log: Path) -> None:
    last: Exception | None = None
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerError(f"ended with status {process.returncode} before it answered: {_last_error(log)}")
        try:
            return answers()
        except (OSError, HTTPException) as error:
            last = error
            time.sleep(POLL_S)
    raise PeerError(f"gave no answer in {START_S:.0f} s: {last}; its log ends with: {_last_error(log)}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    try:
        parent = psutil.Process(process.pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:  # it has ended: its children are found by their session
        family = [one for one in psutil.process_iter() if _session(one.pid) == process.pid]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_S)
    for one in alive:
        one.kill()
    psutil.wait_procs(alive, timeout=STOP_S)
    process.wait()


def _session(process_id: int) -> int | None:
    try:
        return os.getsid(process_id)
    except ProcessLookupError:
        return None


def _last_error(log: Path) -> str:
    """The last line that names an exception, or else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Fail): ", line)]
    return [*lines[-1:], *errors[-1:]][-1] if lines else "nothing was written"
