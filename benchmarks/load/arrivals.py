"""Arrivals: when the requests of an open loop are due, and a timer that wakes the event loop on time.

The timers of asyncio and uvloop tick in milliseconds, which is as long as a short request takes. `Alarm` is Linux's
timerfd, which Python has as os.timerfd_create from 3.13 on.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable, Sequence

import numpy as np


def poisson(rate_per_s: float, duration_s: float, seed: int) -> np.ndarray:
    """Ascending times in [0, duration_s), float64 seconds, of a Poisson process.

    The same seed gives the same arrivals. At another rate they are the same on another time scale, so two rates differ
    in nothing else.
    """
    random = np.random.default_rng(seed)
    expected = rate_per_s * duration_s
    gaps = random.exponential(size=int(expected + 10 * np.sqrt(expected) + 20))  # ten deviations above: never too few
    times = np.cumsum(gaps) / rate_per_s
    return times[times < duration_s]


def along(curve: Sequence[float], duration_s: float, seed: int) -> np.ndarray:
    """Ascending times in [0, duration_s), float64 seconds, of a Poisson process whose rate follows `curve`.

    `curve` holds rates per second at equal steps from the start to the end, with straight lines between them. The same
    seed gives the same arrivals.
    """
    at_s = np.linspace(0.0, duration_s, len(curve))
    fine_s = np.linspace(0.0, duration_s, 64 * len(curve))  # the integral of a line is no line
    rates = np.interp(fine_s, at_s, np.asarray(curve, dtype=np.float64))
    expected = np.concatenate(([0.0], np.cumsum((rates[1:] + rates[:-1]) / 2 * np.diff(fine_s))))
    times: np.ndarray = np.interp(poisson(1.0, float(expected[-1]), seed), expected, fine_s)
    return times[times < duration_s]


_CLOCK_MONOTONIC = 1  # the clock of time.perf_counter on Linux
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_libc = ctypes.CDLL(None, use_errno=True)


class _Setting(ctypes.Structure):
    """struct itimerspec, timerfd_settime(2): repeat interval, then time, each in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    )


class Alarm:
    """Calls `ring` in the running event loop at the time that was set last. Linux only."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._expired)

    def set(self, at: float) -> None:
        """Ring at this time of `time.perf_counter`, or at once where it has passed."""
        nanoseconds = max(int(at * 1e9), 1)  # zero would disarm it
        setting = _Setting(0, 0, *divmod(nanoseconds, 1_000_000_000))
        if _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(setting), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew since it woke the loop
            return
        self._ring()
