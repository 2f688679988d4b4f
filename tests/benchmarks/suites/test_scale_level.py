"""What the suite of scaling serves, counts and compares; the clusters themselves are the suite's."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.suites.cluster import CLASSIFY
from benchmarks.suites.scale.fleet import Fleet
from benchmarks.suites.scale.level import PEAK_LOAD, at_equal_cost, cluster, day, remember_days
from deployments.cluster.rollout import validated
from deployments.config import task_configs
from deployments.scaling.daily import DailyPattern
from deployments.scaling.options import may_sleep, set_scaling

NAMES = [CLASSIFY.name, f"{CLASSIFY.name}.plain", f"{CLASSIFY.name}.tuned"]


def test_three_applications_scale_between_the_same_bounds_by_three_rules(tmp_path: Path) -> None:
    content = cluster(tmp_path / "model", 600.0, tmp_path)
    set_scaling(content, tmp_path)
    assert list(task_configs(content)) == NAMES
    scaling = [one.deployments[0].autoscaling_config for one in validated(content).applications]
    bounds = {(one["min_replicas"], one["max_replicas"]) for one in scaling if isinstance(one, dict)}
    assert bounds == {(1, 4)}
    assert ["policy" in one for one in scaling if isinstance(one, dict)] == [True, False, False]
    assert may_sleep(content) == []


def test_a_day_has_its_peak_at_noon_and_a_tenth_of_it_at_night() -> None:
    loads = day(PEAK_LOAD)
    assert max(loads) == PEAK_LOAD
    assert 11 < 24 * loads.index(max(loads)) / (len(loads) - 1) < 12
    assert loads[0] == pytest.approx(PEAK_LOAD / 10, rel=0.1)


def test_the_days_before_leave_a_pattern_at_their_time_of_day(tmp_path: Path, exported: Callable[..., Path]) -> None:
    curve = [one / 0.2 for one in day(PEAK_LOAD)]  # requests of 36 tokens take 0.2 s
    content, begins_at = cluster(exported("bert", CLASSIFY.name), 120.0, tmp_path), 1_000_030.0
    remember_days(tmp_path, content, curve, [36], begins_at, print)

    kept = DailyPattern.file(tmp_path, f"{CLASSIFY.name}:{CLASSIFY.name}")
    found = DailyPattern.of_text(kept.read_bytes())
    assert found.needs(begins_at + 24.0) == 1  # night
    assert found.needs(begins_at + 60.0) == found.needs(begins_at + 60.0 + 120.0) > 2  # noon, of any day


@pytest.mark.parametrize(("cost", "share"), [(50, 0.8), (100, 0.8), (150, 0.85), (300, 0.9)])
def test_a_policy_of_equal_cost_lies_between_two(cost: float, share: float) -> None:
    assert at_equal_cost(cost, [(200, 0.9), (100, 0.8)]) == pytest.approx(share)


def test_replicas_are_counted_by_their_processes_while_they_run() -> None:
    named = [f"ray::ServeReplica:{NAMES[1]}:{CLASSIFY.name}", "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(named, executable=sys.executable)
    try:
        fleet = Fleet(psutil.Process().pid, NAMES)
        with fleet.watched():
            while len(fleet.samples) < 3:
                time.sleep(0.05)
        assert fleet.count()[NAMES[1]] == 1
        assert fleet.replica_seconds(NAMES[1]) == pytest.approx(fleet.samples[-1][0] - fleet.samples[0][0])
        assert fleet.replica_seconds(NAMES[0]) == 0
    finally:
        child.kill()
        child.wait()
