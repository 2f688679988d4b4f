"""Series: counters, gauges and histograms that one thread writes and another reads now and then.

As those of prometheus_client, without their locks and checks: counting costs a quarter of a microsecond instead of one.
prometheus_client writes them out.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

SeriesT = TypeVar("SeriesT")


class Value:
    """One number."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Distribution:
    """How many of the observed numbers lie up to each bound, and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self.sum = bounds, 0.0
        self.counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Family(Collector, ABC, Generic[SeriesT]):
    """The series of one name, by the values of their labels."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self._series: dict[tuple[str, ...], SeriesT] = {}
        registry.register(self)

    def at(self, *values: str) -> SeriesT:
        """The series with these values of the labels, made where it is new."""
        if values not in self._series:
            self._series[values] = self._new()
        return self._series[values]

    def remove(self, *values: str) -> None:
        self._series.pop(values, None)

    def describe(self) -> list[Metric]:
        return []

    def _items(self) -> list[tuple[tuple[str, ...], SeriesT]]:
        return list(self._series.items())

    @abstractmethod
    def _new(self) -> SeriesT: ...


class Counter(Family[Value]):
    """Numbers that only grow."""

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for values, series in self._items():
            family.add_metric(values, series.value)
        yield family

    def _new(self) -> Value:
        return Value()


class Gauge(Family[Value]):
    """Numbers that are set."""

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        for values, series in self._items():
            family.add_metric(values, series.value)
        yield family

    def _new(self) -> Value:
        return Value()


class Histogram(Family[Distribution]):
    """Distributions over the same `bounds`, which ascend."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        super().__init__(registry, name, text, labels)
        self._bounds = tuple(map(float, bounds))
        self._names = [*map(floatToGoString, self._bounds), "+Inf"]

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        for values, series in self._items():
            buckets = list(zip(self._names, map(float, accumulate(list(series.counts))), strict=True))
            family.add_metric(values, buckets, series.sum)
        yield family

    def _new(self) -> Distribution:
        return Distribution(self._bounds)
