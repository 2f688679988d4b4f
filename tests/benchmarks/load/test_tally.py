import pickle

import numpy as np
import pytest

from benchmarks.load.tally import Histogram


def recorded(durations_s: np.ndarray) -> Histogram:
    histogram = Histogram()
    for one in durations_s:
        histogram.record(float(one))
    return histogram


@pytest.fixture(scope="module")
def durations_s() -> np.ndarray:
    return np.random.default_rng(0).lognormal(-4, 1, 20_000)


@pytest.mark.parametrize("percentile", [1, 50, 90, 99, 99.9])
def test_percentiles_equal_those_of_numpy_to_three_digits(durations_s: np.ndarray, percentile: float) -> None:
    expected_ms = 1000 * np.percentile(durations_s, percentile, method="inverted_cdf")

    assert recorded(durations_s).percentile_ms(percentile) == pytest.approx(expected_ms, rel=2e-3)


def test_the_histograms_of_several_processes_add_up(durations_s: np.ndarray) -> None:
    whole, first, second = recorded(durations_s), recorded(durations_s[:7000]), recorded(durations_s[7000:])

    first.add(pickle.loads(pickle.dumps(second)))

    assert first.summary() == whole.summary()
    assert Histogram.decode(first.encode()).summary() == whole.summary()


def test_a_histogram_of_nothing_has_no_figures() -> None:
    assert Histogram().summary() == {}
