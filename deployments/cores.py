"""Cores: those of this machine that a replica has for itself, with `pin_cores: true`.

Replicas of one node do not know of each other. Each takes cores by locking their files in a folder of the machine; the
kernel gives a lock back when its process ends, however it ends. A core is taken with all its hyperthreads, and all
cores of a replica belong to one NUMA node where one has so many free: its memory is then near.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from deployments.http.errors import logger

FOLDER = Path("/tmp") / f"sextet-cores-{os.getuid()}"
CPUS = Path("/sys/devices/system/cpu")
RETRY_S = 5.0


@dataclass(frozen=True, order=True)
class Core:
    """A physical core: its NUMA node and its hyperthreads, by the numbers of the kernel."""

    node: int
    cpus: tuple[int, ...]


def cores(allowed: Iterable[int], cpus: Path = CPUS) -> list[Core]:
    """The cores whose hyperthreads are all `allowed`, node by node. Where the kernel does not say what belongs
    together, every CPU is a core of node 0.
    """
    remaining, found = set(allowed), set()
    for cpu in sorted(remaining):
        siblings = _numbers(cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list") or {cpu}
        nodes = [int(folder.name.removeprefix("node")) for folder in (cpus / f"cpu{cpu}").glob("node[0-9]*")]
        if siblings <= remaining:
            found.add(Core(min(nodes, default=0), tuple(sorted(siblings))))
    return sorted(found)


def choose(free: Sequence[Core], n: int) -> list[Core]:
    """`n` of the `free` cores, which are in the order of their nodes: of the node that has fewest but enough, else of
    those that have most. None of them where there are fewer.
    """
    by_node = [list(group) for _, group in groupby(free, key=lambda core: core.node)]
    enough = [one for one in by_node if len(one) >= n]
    if enough:
        return min(enough, key=len)[:n]
    ordered = [core for one in sorted(by_node, key=len, reverse=True) for core in one]
    return ordered[:n] if len(ordered) >= n else []


class OwnCores:
    """The cores of this process."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._allowed = os.sched_getaffinity(0)
        self._held: dict[Core, int] = {}  # open files by core
        self._wanted = 0
        self._change = threading.Lock()

    def ensure(self, n: int) -> None:
        """Run on `n` cores that no other replica of this machine has; 0 gives all back.

        Where too few are free, this process shares cores, says so, and takes its own once they are: the replica that it
        replaces may still run.
        """
        with self._change:
            self._give_back()
            self._wanted = n
            if n == 0 or self._take(n):
                return
        logger.warning("pin_cores: fewer than %d cores are free: this replica shares cores until they are", n)
        threading.Thread(target=self._retry, args=(n,), name="cores", daemon=True).start()

    def _retry(self, n: int) -> None:
        while True:
            time.sleep(RETRY_S)
            with self._change:
                if self._wanted != n or self._held or self._take(n):
                    return

    def _take(self, n: int) -> bool:
        """Lock `n` cores and run on them alone; False where fewer are free."""
        try:
            with self._alone():
                opened = {core: _locked(self._folder / f"core-{core.cpus[0]}") for core in cores(self._allowed)}
                free = {core: file for core, file in opened.items() if file is not None}
                chosen = choose(sorted(free), n)
                for core in free.keys() - set(chosen):
                    os.close(free[core])
        except OSError as error:  # no folder to lock in, or somebody else's
            logger.warning("pin_cores: %s: this replica shares cores", error)
            return True
        self._held = {core: free[core] for core in chosen}
        if chosen:
            _run_on({cpu for core in chosen for cpu in core.cpus})
        return bool(chosen)

    def _give_back(self) -> None:
        if self._held:
            _run_on(self._allowed)
        for file in self._held.values():
            os.close(file)
        self._held = {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process looks for free cores: it would take those for taken that this one only looks at."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid() or self._folder.is_symlink():
            raise OSError(f"{self._folder} belongs to somebody else")
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


OWN_CORES = OwnCores()


def _locked(file: Path) -> int | None:
    """The file, open and locked; None where another process has it."""
    opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


def _run_on(cpus: set[int]) -> None:
    """All threads of this process; those that they start later inherit it."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(task.name), cpus)


def _numbers(file: Path) -> set[int]:
    """`0-3,8` as numbers; none where there is no such file."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return set()
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers
