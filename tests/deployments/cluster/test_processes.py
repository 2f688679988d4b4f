"""Real processes: found by descent, ended if they do not end, never mistaken for others."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deployments.cluster.processes import Signals, StopRequested, descendants, end

FAMILY = "import subprocess, time; subprocess.Popen(['sleep', '300']); print('ready', flush=True); time.sleep(300)"


@pytest.fixture
def parent() -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a child of its own."""
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_descendants_are_children_and_their_children(parent: "subprocess.Popen[bytes]") -> None:
    below = descendants(os.getpid())

    child = next(one for one in below if one.pid == parent.pid)
    assert [one.pid for one in below if one.parent == child.pid]


def test_what_outlives_its_parent_is_killed(parent: "subprocess.Popen[bytes]") -> None:
    family = descendants(parent.pid)
    parent.kill()
    parent.wait()

    orphans = [one for one in family if one.is_alive()]
    end(orphans, patience_s=0.1)

    assert orphans
    give_up_at = time.monotonic() + 10
    while any(one.is_alive() for one in orphans):
        assert time.monotonic() < give_up_at


def test_a_process_that_has_only_the_same_id_is_left_alone(parent: "subprocess.Popen[bytes]") -> None:
    (found,) = [one for one in descendants(os.getpid()) if one.pid == parent.pid]

    end([replace(found, started_at=found.started_at - 1)], patience_s=0.0)

    assert parent.poll() is None


def test_the_first_signal_stops_and_further_ones_change_nothing() -> None:
    before = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    }
    try:
        signals = Signals()
        signals.install()
        with pytest.raises(StopRequested):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signals.install()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert [signals.reload_was_requested(), signals.reload_was_requested()] == [True, False]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_a_process_that_cannot_be_killed_does_not_keep_the_others_alive(
    parent: "subprocess.Popen[bytes]", error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends between the look and the kill, or that has become another user's."""
    first, second = (one for one in [*descendants(os.getpid())] if parent.pid in (one.pid, one.parent))
    kill = os.kill

    def refuse_first(pid: int, number: int) -> None:
        if pid == first.pid:
            raise error
        kill(pid, number)

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse_first)
        end([first, second], patience_s=0.0)

    give_up_at = time.monotonic() + 10
    while second.is_alive():
        assert time.monotonic() < give_up_at
