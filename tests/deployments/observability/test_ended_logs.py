"""Which log files go where more processes have ended than a session's folder is to keep files of."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.observability.ended_logs import remove_ended

ENDED = [f"worker-{letter}-01000000-{number}.out" for number, letter in enumerate("abcdef", 100)]
"""From the oldest to the newest."""


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Of six processes that have ended, and of Ray's own."""
    (tmp_path / "serve").mkdir()
    for age, name in enumerate(reversed(["raylet.out", *ENDED])):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    return tmp_path


@pytest.fixture
def living(logs: Path) -> Iterator[list[Path]]:
    """The files of a process that runs, older than all others: what it writes to, and what that was rotated to."""
    files = [logs / "python-core-worker-f_7.log", logs / "python-core-worker-f_7.1.log"]
    files += [logs / "serve" / "replica_translation_x.log", logs / "serve" / "replica_translation_x.log.1"]
    for file in files:
        file.write_bytes(bytes(100))
        os.utime(file, (1, 1))
    shell = f"exec sleep 300 >>{files[0]} 2>>{files[2]}"
    process = subprocess.Popen(["sh", "-c", f"exec 3>>{files[0]} 4>>{files[2]}; echo; {shell}"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it has them open
    yield files
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_oldest_files_of_processes_that_have_ended_go_and_those_of_a_living_one_stay(
    logs: Path, living: list[Path]
) -> None:
    removed = remove_ended(logs, max_files=4, max_bytes=10_000)

    assert sorted(one.name for one in removed) == ENDED[:2]
    assert {one.name for one in logs.glob("worker-*")} == set(ENDED[2:])
    assert all(file.exists() for file in living)
    assert (logs / "raylet.out").exists()


def test_so_do_those_beyond_so_many_bytes(logs: Path, living: list[Path]) -> None:
    remove_ended(logs, max_files=100, max_bytes=350)

    assert {one.name for one in logs.glob("worker-*")} == set(ENDED[3:])


def test_within_the_bounds_nothing_goes(logs: Path) -> None:
    assert remove_ended(logs) == []
    assert len(list(logs.iterdir())) == len(ENDED) + 2
