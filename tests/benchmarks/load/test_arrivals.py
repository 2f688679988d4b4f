import numpy as np
import pytest

from benchmarks.load.arrivals import along, poisson


def test_arrivals_come_at_the_rate_that_was_asked_for() -> None:
    times = poisson(rate_per_s=50.0, duration_s=400.0, seed=1)
    gaps = np.diff(times)

    assert len(times) / 400 == pytest.approx(50, rel=0.05)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)  # of an exponential distribution: equal to its mean
    assert (gaps >= 0).all()
    assert times[-1] < 400


def test_the_same_seed_gives_the_same_arrivals_and_another_one_others() -> None:
    assert poisson(20.0, 5.0, seed=3).tolist() == poisson(20.0, 5.0, seed=3).tolist()
    assert poisson(20.0, 5.0, seed=3).tolist() != poisson(20.0, 5.0, seed=4).tolist()


def test_another_rate_is_the_same_arrivals_on_another_time_scale() -> None:
    slow, fast = poisson(10.0, 20.0, seed=5), poisson(20.0, 10.0, seed=5)

    assert fast == pytest.approx(slow / 2)


def test_arrivals_along_a_curve_come_at_its_rate_wherever_it_is() -> None:
    times = along([10.0, 50.0, 50.0, 0.0], 300.0, seed=2)

    counted, _ = np.histogram(times, bins=[0, 100, 200, 300])
    assert counted == pytest.approx([3000, 5000, 2500], rel=0.05)
    rising, _ = np.histogram(times, bins=[0, 25, 50, 75, 100])
    assert rising == pytest.approx([375, 625, 875, 1125], rel=0.12)
    assert (np.diff(times) >= 0).all()
    assert along([10.0, 50.0], 30.0, seed=2).tolist() == along([10.0, 50.0], 30.0, seed=2).tolist()
