"""Replicas on one machine do not share cores: files that real processes lock, and a machine that a folder describes."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments import cores as module
from deployments.cores import Core, OwnCores, choose, cores
from deployments.task_server import TaskServer
from tests.deployments.asking import post

TWO_NODES = [Core(0, (0, 8)), Core(0, (1, 9)), Core(0, (2, 10)), Core(1, (4, 12)), Core(1, (5, 13))]
CHILD = """
import os, sys
from pathlib import Path
from deployments.cores import OwnCores
own = OwnCores(Path(sys.argv[1]))
own.ensure(int(sys.argv[2]))
print(len(own._held), *sorted(os.sched_getaffinity(0)), flush=True)
sys.stdin.read()
"""
several = pytest.mark.skipif(len(cores(os.sched_getaffinity(0))) < 2, reason="needs two cores")


def described(folder: Path, siblings: dict[int, str], nodes: dict[int, int]) -> Path:
    for cpu, text in siblings.items():
        (folder / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (folder / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{text}\n")
        (folder / f"cpu{cpu}" / f"node{nodes[cpu]}").mkdir()
    return folder


def test_a_core_is_taken_with_all_its_hyperthreads_or_not_at_all(tmp_path: Path) -> None:
    siblings = {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5", 6: "2,6"}
    folder = described(tmp_path, siblings, {0: 0, 1: 0, 2: 1, 4: 0, 5: 0, 6: 1})
    assert cores([0, 1, 2, 4, 6], folder) == [Core(0, (0, 4)), Core(1, (2, 6))]
    assert cores([0, 1], tmp_path / "unknown") == [Core(0, (0,)), Core(0, (1,))]


def test_cores_are_of_one_node_where_one_has_enough(tmp_path: Path) -> None:
    assert choose(TWO_NODES, 2) == TWO_NODES[3:], "the node that fits best"
    assert choose(TWO_NODES, 3) == TWO_NODES[:3]
    assert choose(TWO_NODES, 4) == TWO_NODES[:4]
    assert choose(TWO_NODES, 6) == []


@several
def test_processes_take_different_cores_and_give_them_back_when_they_are_killed(tmp_path: Path) -> None:
    n = len(cores(os.sched_getaffinity(0)))
    children = [_child(tmp_path, 1) for _ in range(n)]
    took = [_line(one) for one in children]
    assert [one[0] for one in took] == ["1"] * n
    taken = [cpu for one in took for cpu in one[1:]]
    assert len(taken) == len(set(taken)), "no CPU twice"
    late = _child(tmp_path, 1)
    assert _line(late)[0] == "0", "none is free"
    _end(children[0])
    again = _child(tmp_path, 1)
    assert _line(again) == took[0]
    for one in (*children[1:], late, again):
        _end(one)


@several
def test_who_waits_for_cores_gets_them_once_they_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    before, n = os.sched_getaffinity(0), len(cores(os.sched_getaffinity(0)))
    other = _child(tmp_path, n)
    assert _line(other)[0] == str(n)
    own = OwnCores(tmp_path)
    try:
        own.ensure(1)
        assert (own._held, os.sched_getaffinity(0)) == ({}, before)
        _end(other)
        give_up_at = time.monotonic() + 20
        while not own._held:
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        (core,) = own._held
        affinities = [os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()]
        assert affinities == [set(core.cpus)] * len(affinities), "every thread"
    finally:
        own.ensure(0)
    assert os.sched_getaffinity(0) == before


@several
def test_a_replica_runs_on_its_own_cores_and_stops_doing_so_when_it_is_told(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.OWN_CORES, "_folder", tmp_path)
    before, server = os.sched_getaffinity(0), TaskServer("text-classification")
    pinned = {"model": str(exported("bert", "text-classification")), "threads": 1, "pin_cores": True}
    try:
        asyncio.run(server.reconfigure(pinned))
        (core,) = module.OWN_CORES._held
        assert os.sched_getaffinity(0) == set(core.cpus)
        assert post(server, {"inputs": "what a film"}).status_code == 200
        asyncio.run(server.reconfigure(pinned | {"pin_cores": False}))
    finally:
        module.OWN_CORES.ensure(0)
    assert os.sched_getaffinity(0) == before


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    before = os.sched_getaffinity(0)
    OwnCores(tmp_path / "link").ensure(1)
    assert os.sched_getaffinity(0) == before
    assert list((tmp_path / "theirs").iterdir()) == []


def _child(folder: Path, n: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, str(folder), str(n)]
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root)}
    )


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def _line(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()
