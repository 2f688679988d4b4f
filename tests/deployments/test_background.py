"""Background: what loads a model leaves the cores to others, and computes as fast as others afterwards."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines
from deployments.background import NICER, in_background

NOBODY = 65534
IS_ALLOWED = os.geteuid() == 0  # as in CI and in the image


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def of_threads() -> dict[int, int]:
    """The niceness of each thread of this process."""
    return {int(one.name): os.getpriority(os.PRIO_PROCESS, int(one.name)) for one in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not IS_ALLOWED, reason="needs the right to give threads their priority back")
def test_threads_of_a_loading_model_are_nicer_until_it_is_loaded(exported: Callable[..., Path]) -> None:
    usual, before = niceness(), of_threads()
    with in_background():
        classify = pipelines.load(exported("bert", "text-classification"), threads=3)
        loading = {thread: nice for thread, nice in of_threads().items() if thread not in before}
        assert niceness() == usual + NICER

    assert set(loading.values()) == {usual + NICER}
    assert len(loading) >= 2  # of ONNX Runtime's, which stay
    assert {of_threads()[thread] for thread in loading} == {usual}
    assert niceness() == usual
    assert classify("good")


@pytest.mark.skipif(not IS_ALLOWED, reason="needs the right to give threads their priority back")
def test_a_model_that_does_not_load_leaves_no_slow_thread() -> None:
    usual = niceness()
    with pytest.raises(RuntimeError), in_background():
        raise RuntimeError

    assert niceness() == usual


def test_who_could_not_come_back_keeps_its_priority() -> None:
    """Else ONNX Runtime's threads would compute at low priority for ever."""
    script = f"""
import os, resource, threading
from deployments.background import in_background
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
with in_background():
    print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert int(printed) == niceness()


@pytest.mark.skipif(not IS_ALLOWED, reason="needs the right to give threads their priority back")
def test_a_replica_loads_a_new_model_nicer_than_it_answers(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from deployments.task_server import TaskServer

    usual, load, seen = niceness(), pipelines.load, []

    def watched(*given: Any, **options: Any) -> Any:
        seen.append(niceness())
        return load(*given, **options)

    monkeypatch.setattr(pipelines, "load", watched)
    server = TaskServer("text-classification")
    model = str(exported("bert", "text-classification"))
    asyncio.run(server.reconfigure({"model": model}))
    asyncio.run(server.reconfigure({"model": model, "threads": 2}))

    assert seen == [usual + NICER] * 2
    assert set(of_threads().values()) == {usual}
