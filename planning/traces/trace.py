"""Trace: when requests arrive and how large they are, from a file or from a named distribution.

requests.jsonl      what replicas log of requests (user_config.request_log): a recorded cluster
arrivals.csv        a header with `time`, and any of `tokens`, `rows`, `written_tokens`, `deadline_s`, `bulk`
constant:20         20 requests/s, Poisson, for --hours
day:5-40            a day: 5 requests/s at 4 o'clock, 40 at 16 o'clock, a cosine between
burst:5-40          5 requests/s, and 40 for the middle tenth of --hours
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipelines.errors import ConfigurationError
from planning.bounds import MAX_REQUESTS, MAX_TOKENS, bounded

HOUR_S, DAY_S = 3600.0, 86_400.0
LOWEST_AT_S = 4 * HOUR_S
GRID_S = 10.0
FORMS = "constant:RATE, day:LOWEST-HIGHEST, burst:BASE-PEAK (requests/s), or a file .jsonl or .csv"
MAX_RATE = 1e6

Draw = Callable[[int, int], Any]
"""(count, seed) -> that many tokens."""


@dataclass(frozen=True)
class Trace:
    """`arrivals_s` ascend from 0, float64. Each request has `rows` rows of `tokens` tokens, int64, and writes
    `written` tokens; `deadlines_s` count from its arrival, infinite for none. `overhead_s` is what an answer takes
    beside its queue and the model, where that was measured. `day_at_s` is the time of day at its beginning.
    """

    name: str
    duration_s: float
    arrivals_s: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray
    written: np.ndarray
    deadlines_s: np.ndarray
    bulk: np.ndarray
    overhead_s: float | None = None
    day_at_s: float = 0.0

    def __len__(self) -> int:
        return len(self.arrivals_s)

    def thinned(self, seed: int, share: float) -> "Trace":
        """Each request stays with the probability `share`; above 1 it comes so often, at near times."""
        random = np.random.default_rng([seed, 1])
        times = np.floor(share) + (random.random(len(self)) < share % 1)
        if times.sum() > MAX_REQUESTS:
            raise ConfigurationError(f"the trace has {times.sum():,.0f} requests; allowed: {MAX_REQUESTS:,}")
        taken = np.repeat(np.arange(len(self)), times.astype(np.int64))
        # Copies spread over a second: requests that arrive together would be another load.
        shifted = np.where(np.diff(taken, prepend=-1) == 0, random.random(len(taken)), 0.0)
        arrivals = np.minimum(self.arrivals_s[taken] + shifted, self.duration_s)
        order = np.argsort(arrivals, kind="stable")
        fields = {name: getattr(self, name)[taken][order] for name in _PER_REQUEST}
        return replace(self, arrivals_s=arrivals[order], **fields)

    def rates(self, bins: int) -> np.ndarray:
        """Requests/s in each of so many equal parts."""
        counted, _ = np.histogram(self.arrivals_s, bins, (0.0, self.duration_s))
        return np.asarray(counted / (self.duration_s / bins))


_PER_REQUEST = ("tokens", "rows", "written", "deadlines_s", "bulk")


@dataclass(frozen=True)
class Sizes:
    """What a source that has only times lacks. `deadline_s` None is none."""

    tokens: Draw
    written: Draw = field(default=lambda count, seed: np.zeros(count, np.int64))
    deadline_s: float | None = None

    def trace(self, name: str, duration_s: float, arrivals_s: np.ndarray, seed: int, **known: Any) -> Trace:
        """A trace of these arrivals; `known` are the fields that the source has."""
        count = len(arrivals_s)
        deadline_s = np.inf if self.deadline_s is None else self.deadline_s
        drawn: dict[str, Any] = {
            "tokens": lambda: np.asarray(self.tokens(count, seed), np.int64),
            "rows": lambda: np.ones(count, np.int64),
            "written": lambda: np.asarray(self.written(count, seed + 1), np.int64),
            "deadlines_s": lambda: np.full(count, deadline_s),
            "bulk": lambda: np.zeros(count, bool),
        }
        missing = {one: draw() for one, draw in drawn.items() if one not in known}
        return Trace(name, duration_s, arrivals_s, **(missing | known))


def named(form: str, hours: float | None, sizes: Sizes, seed: int) -> Trace | None:
    """The trace of a named distribution; None for what is none. Raises ConfigurationError for numbers that are not
    allowed.
    """
    kind, colon, text = form.partition(":")
    rates = _RATES.get(kind)
    if rates is None or not colon:
        return None
    try:
        numbers = [float(one) for one in text.split("-")]
    except ValueError:
        numbers = []
    if len(numbers) != (1 if kind == "constant" else 2) or not all(0 <= one <= MAX_RATE for one in numbers):
        raise ConfigurationError(f"--trace is {form!r}; allowed: {FORMS}; rates from 0 to {MAX_RATE:,.0f}")
    duration_s = (24.0 if hours is None and kind == "day" else 1.0 if hours is None else hours) * HOUR_S
    edges = np.linspace(0.0, duration_s, max(2, round(duration_s / GRID_S) + 1))
    return sizes.trace(form, duration_s, poisson(edges, rates(edges, duration_s, *numbers), seed), seed)


def poisson(edges_s: np.ndarray, rates_per_s: np.ndarray, seed: int) -> np.ndarray:
    """Ascending times of a Poisson process whose rate at each of `edges_s` is given, and linear between them."""
    steps = (rates_per_s[1:] + rates_per_s[:-1]) / 2 * np.diff(edges_s)
    expected = np.concatenate([[0.0], np.cumsum(steps)])
    bounded("the number of requests of the trace", float(expected[-1]), 0, MAX_REQUESTS)
    random = np.random.default_rng(seed)
    drawn = np.sort(random.random(random.poisson(expected[-1]))) * expected[-1]
    return np.asarray(np.interp(drawn, expected, edges_s))


def _constant(at_s: np.ndarray, _duration_s: float, rate: float) -> np.ndarray:
    return np.full(len(at_s), rate)


def _day(at_s: np.ndarray, _duration_s: float, lowest: float, highest: float) -> np.ndarray:
    share = (1 - np.cos(2 * np.pi * (at_s - LOWEST_AT_S) / DAY_S)) / 2
    return np.asarray(lowest + (highest - lowest) * share)


def _burst(at_s: np.ndarray, duration_s: float, base: float, peak: float) -> np.ndarray:
    inside = np.abs(at_s - duration_s / 2) <= duration_s / 20
    return np.where(inside, peak, base)


_RATES: dict[str, Callable[..., np.ndarray]] = {"constant": _constant, "day": _day, "burst": _burst}


def check_tokens(tokens: int, where: str) -> int:
    """A number of tokens of one request; raises ConfigurationError."""
    return int(bounded(where, tokens, 1, MAX_TOKENS))
