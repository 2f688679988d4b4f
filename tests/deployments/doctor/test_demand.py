"""What replicas reserve, as Ray Serve reads it from its config file."""

from typing import Any

import pytest

from deployments.doctor.demand import Demand, cpus, demands, equal_share, gpu_shares, unplaced
from deployments.doctor.machine import Capacity


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1, 1, 1.0, 0.0)),
        ({"num_replicas": 3, "ray_actor_options": {"num_cpus": 0}}, (3, 3, 0.0, 0.0)),
        ({"num_replicas": "auto"}, (1, 100, 1.0, 0.0)),
        ({"autoscaling_config": {"min_replicas": 0, "max_replicas": 4}}, (0, 4, 1.0, 0.0)),
        ({"autoscaling_config": {"min_replicas": 1, "initial_replicas": 2, "max_replicas": 4}}, (2, 4, 1.0, 0.0)),
        ({"ray_actor_options": {"num_cpus": 0.2, "num_gpus": 0.25}}, (1, 1, 0.2, 0.25)),
        ({"placement_group_bundles": [{"CPU": 1, "GPU": 1}, {"CPU": 2}]}, (1, 1, 3.0, 1.0)),
    ],
)
def test_a_deployment_reserves_what_it_says(given: dict[str, Any], expected: tuple[float, ...]) -> None:
    content = {"applications": [{"name": "a", "deployments": [{"name": "b", **given}]}]}
    assert demands(content) == [Demand("a", "b", *expected)]  # type: ignore[arg-type]


def test_an_application_that_lists_nothing_has_one_replica_of_one_cpu() -> None:
    assert demands({"applications": [{"name": "gateway"}]}) == [Demand("gateway", "gateway", 1, 1)]


@pytest.mark.parametrize(
    ("sizes", "gpus", "left"),
    [
        ([0.25] * 4, 1, []),
        ([0.25] * 5, 1, [0.25]),
        ([0.6, 0.6, 0.6], 2, [0.6]),  # 1.8 of 2, and a share lies on one GPU
        ([0.6, 0.4, 0.6, 0.4], 2, []),
        ([2, 0.5], 2, [0.5]),
        ([1, 0.5, 0.5], 2, []),
        ([0.1], 0, [0.1]),
        ([1 / 3] * 3, 1, []),
        ([1 / 6] * 6, 1, [1 / 6]),  # Ray rounds a sixth up to 0.1667
        ([1 / 6] * 12, 2, [1 / 6] * 2),
    ],
)
def test_shares_of_gpus_find_a_place_or_are_left(sizes: list[float], gpus: int, left: list[float]) -> None:
    assert unplaced(sizes, gpus) == left


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 6, 7, 12, 30, 10_000])
def test_replicas_of_equal_shares_find_a_place_on_one_gpu(replicas: int) -> None:
    assert unplaced([equal_share(replicas)] * replicas, 1) == []
    (finding,) = gpu_shares([Demand("a", "b", replicas, replicas, num_gpus=equal_share(replicas))], 1)
    assert finding.level == "ok"


@pytest.mark.parametrize(
    ("replicas", "share", "left"),
    [
        (10**30, 0.25, 10**30 - 8),
        (10**30, 1e-9, 10**30 - 20_000),
        (3, float("inf"), 3),
        (10**30, 2, 10**30 - 1),
        (9, 0.3, 3),
    ],
)
def test_any_number_of_replicas_is_counted_at_once(replicas: int, share: float, left: int) -> None:
    (finding,) = gpu_shares([Demand("a", "b", replicas, replicas, num_gpus=share)], 2)
    assert finding.level == "error"
    assert finding.remedy.endswith(f"replicas that would wait for ever: {left}")


def test_more_cpus_than_there_are_is_an_error_and_more_under_load_a_note() -> None:
    capacity = Capacity(cores=2, ray_cpus=2, memory_bytes=0, available_bytes=0)
    for first, most, level in ((2, 2, "ok"), (2, 3, "note"), (3, 3, "error"), (0, 1, "ok")):
        (found,) = cpus([Demand("a", "b", first, most)], capacity)
        assert found.level == level
    (large,) = cpus([Demand("a", "b", 0, 1, num_cpus=4)], capacity)
    assert large.level == "error", "no node could ever run one replica of it"


def test_more_gpus_than_there_are_is_an_error() -> None:
    assert list(gpu_shares([Demand("a", "b", 1, 1)], 0)) == []
    (fits,) = gpu_shares([Demand("a", "b", 4, 8, num_gpus=0.25)], 1)
    assert (fits.level, fits.text) == ("ok", "1 reserved by the replicas that start; Ray counts 1")
    (lacks,) = gpu_shares([Demand("a", "b", 2, 2, num_gpus=1)], 1)
    assert lacks.level == "error"
    assert lacks.remedy.endswith("replicas that would wait for ever: 1")
