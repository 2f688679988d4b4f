"""Captures: who waits for whom while a CUDA graph is captured."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.runtime.nvidia.capture import Captures

LIMIT_S = 20
NOT_YET_S = 0.05


def test_a_capture_waits_for_runs_and_runs_that_come_later_wait_for_it() -> None:
    captures, order = Captures(), []
    running, capturing, go_on, captured = (threading.Event() for _ in range(4))

    def run_before() -> None:
        with captures.share():
            running.set()
            assert go_on.wait(LIMIT_S)
            order.append("before")

    def capture() -> None:
        assert running.wait(LIMIT_S)
        with captures.capture() as alone:
            assert alone
            order.append("capture")
            capturing.set()
            assert captured.wait(LIMIT_S)
            order.append("captured")

    def run_after() -> None:
        assert capturing.wait(LIMIT_S)
        with captures.share():
            order.append("after")

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(one) for one in (run_before, capture, run_after)]
        assert running.wait(LIMIT_S)
        assert not capturing.wait(NOT_YET_S)
        go_on.set()
        assert capturing.wait(LIMIT_S)
        captured.set()
        for one in done:
            one.result(LIMIT_S)
    assert order == ["before", "capture", "captured", "after"]


def test_runs_that_overlap_without_end_do_not_keep_a_capture_waiting() -> None:
    captures, stop = Captures(), threading.Event()

    def run_on() -> None:
        while not stop.is_set():
            with captures.share(), captures.share():  # shares nest, also while a capture waits
                stop.wait(0.001)

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run_on) for _ in range(2)]
        for _ in range(5):
            assert pool.submit(captured, captures).result(LIMIT_S)
        stop.set()
        for one in runs:
            one.result(LIMIT_S)


def test_nothing_is_captured_while_a_model_loads_and_nobody_waits_for_that() -> None:
    captures = Captures()
    with captures.load():
        assert not captured(captures)
        with captures.share():
            pass
    assert captured(captures)


@pytest.mark.parametrize("begin", [Captures.share, Captures.load, Captures.capture])
def test_an_error_leaves_the_gpu_to_the_next(begin: Callable[..., object]) -> None:
    captures = Captures()
    with pytest.raises(ZeroDivisionError), begin(captures):  # type: ignore[attr-defined]
        raise ZeroDivisionError
    assert captured(captures)


def captured(captures: Captures) -> bool:
    with captures.capture() as alone:
        return alone
