"""The parts of `make bench-scale` that need no cluster."""

import pytest

from benchmarks.suites.scale.replica_watch import USUAL_START_S, mean_start_s


def test_a_start_is_the_time_from_a_process_to_its_first_request() -> None:
    assert mean_start_s([0.0, 10.0, 20.0], [0.5, 16.0, 28.0]) == pytest.approx(7.0)
    assert mean_start_s([0.0, 10.0, 20.0], [0.5, 16.0]) == pytest.approx(6.0), "one that was never asked is left out"
    assert mean_start_s([0.0, 0.1], [0.5, 0.6]) == USUAL_START_S
