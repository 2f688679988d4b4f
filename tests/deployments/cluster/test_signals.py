"""What operators ask of `sextet serve` by signals."""

import signal
from collections.abc import Iterator

import pytest

from deployments.cluster.signals import Signals, StopRequested


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    }
    signals = Signals()
    signals.install()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_first_stop_raises_and_another_one_asks_for_the_end_at_once(signals: Signals) -> None:
    with pytest.raises(StopRequested):
        signal.raise_signal(signal.SIGTERM)
    assert not signals.must_end_at_once

    signals.install()
    signal.raise_signal(signal.SIGINT)

    assert signals.must_end_at_once


def test_a_stop_while_a_cluster_ends_for_another_reason_interrupts_nothing(signals: Signals) -> None:
    signals.end()

    signal.raise_signal(signal.SIGTERM)

    assert signals.must_end_at_once
    assert not signals.stop_was_requested


def test_a_reload_is_asked_for_once(signals: Signals) -> None:
    signal.raise_signal(signal.SIGUSR1)

    assert [signals.reload_was_requested(), signals.reload_was_requested()] == [True, False]
