"""Histogram: a high dynamic range histogram of durations, three digits exact from a microsecond to an hour."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from hdrh.histogram import HdrHistogram

_LONGEST_US = 3_600_000_000
_DIGITS = 3


class Histogram:
    """Durations in seconds go in, milliseconds come out; NaN where nothing was recorded. Merges and travels as text."""

    def __init__(self) -> None:
        self._hdr = HdrHistogram(1, _LONGEST_US, _DIGITS)

    def __len__(self) -> int:
        return int(self._hdr.get_total_count())

    def record(self, duration_s: float) -> None:
        self._hdr.record_value(min(max(int(duration_s * 1e6), 1), _LONGEST_US))

    def add(self, other: Self) -> None:
        self._hdr.add(other._hdr)

    def percentile_ms(self, percentile: float) -> float:
        """The duration that `percentile` per cent of the recorded ones do not exceed."""
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
