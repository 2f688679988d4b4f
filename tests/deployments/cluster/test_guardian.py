"""Real processes: those of a cluster are found by their mark, and end with its launcher however it ends."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.cluster import guardian
from deployments.cluster.guardian import KILLED, MARK, end, of_cluster

FAMILY = "import subprocess, time; subprocess.Popen(['sleep', '300']); print('ready', flush=True); time.sleep(300)"
LAUNCHER = """
import subprocess, sys
from pathlib import Path
from deployments.cluster.guardian import Guardian
guardian = Guardian(Path(sys.argv[1]))
started = subprocess.Popen(["sleep", "300"], start_new_session=True)
print(guardian.pid, started.pid, flush=True)
if sys.stdin.readline():
    started.kill()
    started.wait()
    guardian.stand_down()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a cluster."""
    made = tmp_path / "sextet-1-abc"
    made.mkdir()
    return made


@pytest.fixture
def parent(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the cluster with a child of its own."""
    environment = os.environ | {MARK: str(folder)}
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_what_outlives_its_parent_belongs_to_the_cluster_and_is_killed(
    parent: "subprocess.Popen[bytes]", folder: Path
) -> None:
    give_up_at = time.monotonic() + 10  # its environment is there a little later than it is
    while not (children := set(of_cluster(folder)) - {parent.pid}):
        assert time.monotonic() < give_up_at
    (child,) = children
    parent.kill()
    parent.wait()
    assert list(of_cluster(folder)) == [child]

    end(folder)

    assert list(of_cluster(folder)) == []


def test_processes_of_another_cluster_are_left_alone(parent: "subprocess.Popen[bytes]", folder: Path) -> None:
    end(folder.with_name("sextet-1-ab"))
    end(folder.with_name("sextet-1-abcd"))

    assert parent.poll() is None


def test_a_process_that_has_lost_its_mark_is_known_by_its_log_and_who_reads_that_is_not(folder: Path) -> None:
    """As one whose title is written over its environment."""
    log = folder / "agent.log"
    with (
        log.open("wb") as written,
        log.open("rb") as read,
        subprocess.Popen(["sleep", "300"], env={}, pass_fds=[written.fileno()]) as writer,
        subprocess.Popen(["sleep", "300"], env={}, pass_fds=[read.fileno()]) as reader,
    ):
        written.close()
        assert list(of_cluster(folder)) == [writer.pid]
        end(folder)
        assert reader.poll() is None
        reader.kill()


def test_processes_have_time_to_end_by_themselves_unless_there_is_a_hurry(
    parent: "subprocess.Popen[bytes]", folder: Path
) -> None:
    hurry: list[bool] = []

    def is_hurried() -> bool:
        hurry.append(parent.poll() is None)
        return len(hurry) > 3

    end(folder, patience_s=300.0, is_hurried=is_hurried)

    assert hurry[:4] == [True] * 4


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_a_process_that_cannot_be_killed_does_not_keep_the_others_alive(
    parent: "subprocess.Popen[bytes]", folder: Path, error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends between the look and the kill, or that has become another user's."""
    kill = os.kill

    def refuse_parent(pid: int, number: int) -> None:
        if pid == parent.pid:
            raise error
        kill(pid, number)

    monkeypatch.setattr(guardian, "LONGEST_S", 0.5)
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse_parent)
        end(folder)

    assert list(of_cluster(folder)) == [parent.pid]


def launched(folder: Path) -> "tuple[subprocess.Popen[str], int, int]":
    """A launcher, and the ids of its guardian and of what it started."""
    command = [sys.executable, "-c", LAUNCHER, str(folder)]
    launcher = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    guarding, started = map(int, launcher.stdout.readline().split())
    return launcher, guarding, started


def has_ended(pid: int) -> bool:
    """Within some seconds; an orphan that nobody has waited for yet has ended too."""
    give_up_at = time.monotonic() + 10
    while time.monotonic() < give_up_at:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_launcher_that_is_killed_takes_its_cluster_and_its_folder_along_and_one_line_says_so(folder: Path) -> None:
    launcher, guarding, started = launched(folder)
    with launcher:
        launcher.kill()
        assert launcher.stderr is not None
        assert launcher.stderr.read() == f"{KILLED}\n"

    assert has_ended(started)
    assert has_ended(guarding)
    assert not folder.exists()


def test_a_launcher_that_ends_by_itself_sends_its_guardian_home(folder: Path) -> None:
    launcher, guarding, started = launched(folder)
    with launcher:
        _, said = launcher.communicate("end\n", timeout=30)

    assert (launcher.returncode, said) == (0, "")
    assert has_ended(started)
    assert has_ended(guarding)
    assert folder.exists()
