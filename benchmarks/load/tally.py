"""Tally: what a load generator counts while it measures, its latency histograms, and the figures that come of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from hdrh.histogram import HdrHistogram

from benchmarks.load.client import PARTS, Exchange
from benchmarks.load.objective import Objective

_LONGEST_US = 3_600_000_000
_DIGITS = 3


class Histogram:
    """Records durations in seconds and reports milliseconds, NaN without any. Histograms merge and encode as text."""

    def __init__(self) -> None:
        self._hdr = HdrHistogram(1, _LONGEST_US, _DIGITS)

    def __len__(self) -> int:
        return int(self._hdr.get_total_count())

    def record(self, duration_s: float) -> None:
        self._hdr.record_value(min(max(int(duration_s * 1e6), 1), _LONGEST_US))

    def add(self, other: Self) -> None:
        self._hdr.add(other._hdr)

    def percentile_ms(self, percentile: float) -> float:
        """The duration in ms that `percentile` per cent of the recorded ones do not exceed."""
        return self._hdr.get_value_at_percentile(percentile) / 1000 if len(self) else float("nan")

    def mean_ms(self) -> float:
        return float(self._hdr.get_mean_value()) / 1000 if len(self) else float("nan")

    def summary(self) -> dict[str, float]:
        """Mean, percentiles and maximum in ms; empty where nothing was recorded."""
        if not len(self):
            return {}
        named = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
        return {"mean": self.mean_ms()} | {name: self.percentile_ms(value) for name, value in named.items()}

    def distribution(self, percentiles: Sequence[float]) -> np.ndarray:
        """The percentiles in ms, (len(percentiles),) float64."""
        return np.array([self.percentile_ms(one) for one in percentiles])

    def encode(self) -> str:
        """The HDR interchange format (V2, compressed, base64), which HdrHistogram's other tools read."""
        return str(self._hdr.encode().decode())

    @classmethod
    def decode(cls, text: str) -> Self:
        histogram = cls()
        histogram._hdr.decode_and_add(text.encode())
        return histogram

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return type(self).decode, (self.encode(),)


BUSY_CPU_SHARE = 0.9  # of one core: a generator above it may be what limits the rate
LATE_SHARE = 0.1  # of the p99 latency: more lateness of the generator than this is reported
LATE_MS = 2.0  # lateness below this is not reported


@dataclass
class Tally:
    """Counts and histograms of one measured window; those of several generator processes merge.

    `answered` counts the successes that ended in the window, and `per_s` is the same per second, set by `close`.
    `statuses`, `good` (successes within the objective) and the histograms are of the requests that are due in it.
    """

    objective: Objective | None = None
    statuses: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    per_s: Counter[str] = field(default_factory=Counter)
    good: int = 0
    latency: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)
    between_tokens: Histogram = field(default_factory=Histogram)
    parts: dict[str, Histogram] = field(default_factory=lambda: {part: Histogram() for part in PARTS})
    late: Histogram = field(default_factory=Histogram)
    cpu_shares: list[float] = field(default_factory=list)
    stopped_early: bool = False

    def count_answer(self, exchange: Exchange) -> None:
        """A request that ended inside the window."""
        if exchange.succeeded:
            in_time = self.objective is None or self.objective.is_met(exchange)
            self.answered["requests"] += 1
            self.answered["good"] += in_time
            self.answered["inputs"] += exchange.n_inputs
            self.answered["compute_tokens"] += exchange.compute_tokens
            self.answered["streamed_tokens"] += len(exchange.event_times)

    def count_latency(self, exchange: Exchange) -> None:
        """A request that belongs to the window, whenever it ended. Only successes have a latency."""
        self.statuses[exchange.status] += 1
        if not exchange.succeeded:
            return
        self.latency.record(exchange.latency_s)
        self.good += self.objective is None or self.objective.is_met(exchange)
        if exchange.parts_ms is not None:
            for part, duration_ms in zip(PARTS, exchange.parts_ms, strict=True):
                self.parts[part].record(duration_ms / 1000)
        if exchange.event_times:
            self.first_token.record(exchange.event_times[0] - exchange.intended_at)
            for before, after in zip(exchange.event_times, exchange.event_times[1:], strict=False):
                self.between_tokens.record(after - before)

    @property
    def requests(self) -> int:
        return self.statuses.total()

    @property
    def bad(self) -> int:
        """Requests that failed or took longer than the objective."""
        return self.requests - self.good

    def close(self, duration_s: float, cpu_share: float) -> None:
        """End the window: it lasted `duration_s`, and this process used `cpu_share` of a core in it."""
        self.per_s = Counter({name: count / duration_s for name, count in self.answered.items()})
        self.cpu_shares.append(cpu_share)

    def merge(self, other: "Tally") -> None:
        """Add the tally of another generator process for the same window."""
        for name in ("statuses", "answered", "per_s", "good", "cpu_shares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("latency", "first_token", "between_tokens", "late"):
            getattr(self, name).add(getattr(other, name))
        for part, histogram in other.parts.items():
            self.parts[part].add(histogram)
        self.stopped_early |= other.stopped_early

    def bottleneck(self) -> str | None:
        """Why the generator, and not the server, may be what was measured; None where it kept up."""
        busiest = max(self.cpu_shares, default=0.0)
        if busiest >= BUSY_CPU_SHARE:
            return f"a generator process used {busiest:.0%} of a core: raise --processes"
        late_ms = self.late.percentile_ms(99)
        if late_ms > LATE_MS and late_ms > LATE_SHARE * self.latency.percentile_ms(99):
            return f"the generator was late by {late_ms:.1f} ms (p99): its share of the machine is too small"
        return None

    def summary(self) -> dict[str, Any]:
        """JSON-ready figures; durations in ms, rates per second."""
        figures: dict[str, Any] = {
            "requests": self.requests,
            "errors": {status: count for status, count in sorted(self.statuses.items()) if status != "200"},
            "requests_per_s": self.per_s["requests"],
            "inputs_per_s": self.per_s["inputs"],
            "latency_ms": self.latency.summary(),
            "latency_histogram": self.latency.encode(),
            "generator": {
                "processes": len(self.cpu_shares),
                "cpu_share": max(self.cpu_shares),
                "late_p99_ms": self.late.percentile_ms(99) if len(self.late) else 0.0,
                "bottleneck": self.bottleneck(),
            },
        }
        if self.per_s["compute_tokens"]:
            figures["compute_tokens_per_s"] = self.per_s["compute_tokens"]
        if self.objective is not None:
            figures["goodput_per_s"] = self.per_s["good"]
            figures["within_slo"] = self.good / self.requests if self.requests else 0.0
        if len(self.parts["total"]):
            figures["parts_ms"] = {part: histogram.summary() for part, histogram in self.parts.items()}
        if self.per_s["streamed_tokens"]:
            figures["streamed_tokens_per_s"] = self.per_s["streamed_tokens"]
            figures["ttft_ms"] = self.first_token.summary()
            figures["itl_ms"] = self.between_tokens.summary()
        if self.stopped_early:
            figures["stopped_early"] = True
        return figures
