"""Arrivals: when requests of an open loop are meant to be sent, whatever the server does."""

import numpy as np


def poisson(rate_per_s: float, duration_s: float, seed: int) -> np.ndarray:
    """Ascending times in [0, duration_s), float64 seconds, of a Poisson process.

    The same seed gives the same arrivals, and at another rate the same ones on another time scale, so that two rates
    differ in nothing else.
    """
    random = np.random.default_rng(seed)
    expected = rate_per_s * duration_s
    gaps = random.exponential(size=int(expected + 10 * np.sqrt(expected) + 20))  # ten deviations above: never too few
    times = np.cumsum(gaps) / rate_per_s
    return times[times < duration_s]
