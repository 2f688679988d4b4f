"""The parts of `make bench-scale` that need no cluster."""

import pytest

import pipelines
from benchmarks.figures.bars import SCALE_FIGURES
from benchmarks.suites.scale.__main__ import PARTS
from benchmarks.suites.scale.replica_watch import USUAL_START_S, mean_start_s
from benchmarks.suites.scale.slow import _slowed


def test_a_start_is_the_time_from_a_process_to_its_first_request() -> None:
    assert mean_start_s([0.0, 10.0, 20.0], [0.5, 16.0, 28.0]) == pytest.approx(7.0)
    assert mean_start_s([0.0, 10.0, 20.0], [0.5, 16.0]) == pytest.approx(6.0), "one that was never asked is left out"
    assert mean_start_s([0.0, 0.1], [0.5, 0.6]) == USUAL_START_S


def test_pipelines_are_slow_only_while_the_slow_replica_loads_one() -> None:
    load = pipelines.load
    with _slowed():
        assert pipelines.load is not load
    assert pipelines.load is load


def test_every_part_has_its_figure() -> None:
    assert set(PARTS) <= set(SCALE_FIGURES)
