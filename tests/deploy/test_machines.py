"""One cluster file for each kind of machine, checked as `sextet serve` and `sextet doctor` check it there."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from deployments.cluster.launch import Launch
from deployments.cluster.ray_environment import spare_port
from deployments.cluster.rollout import validated
from deployments.config import deployment_of, read_yaml, set_drains, task_configs, user_configs
from deployments.doctor.cluster import Cluster
from deployments.doctor.demand import demands
from deployments.doctor.machine import Capacity
from deployments.scaling.options import DEFAULTS, may_sleep, set_scaling
from pipelines.runtime.nvidia.driver import Gpu
from pipelines.tasks import TASKS

MACHINES = Path(__file__).parents[2] / "deploy" / "machines"
GIB = 2**30
KINDS = {  # cores, memory, GPUs and the memory of each
    "small-cpu": (2, 8 * GIB, 0, 0),
    "server-32": (32, 64 * GIB, 0, 0),
    "gpu-1": (8, 32 * GIB, 1, 16 * GIB),
    "gpu-8": (64, 256 * GIB, 8, 40 * GIB),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def machine(kind: str) -> tuple[Capacity, list[Gpu]]:
    cores, memory, n_gpus, gpu_bytes = KINDS[kind]
    gpu = Gpu("a GPU", Version("8.0"), gpu_bytes, gpu_bytes)  # type: ignore[arg-type]
    return Capacity(cores, cores, memory, memory), [gpu] * n_gpus


def elsewhere(kind: str, folder: Path) -> Path:
    """Its file in another folder, at a port that is free."""
    content = read_yaml(MACHINES / f"{kind}.yaml") | {"http_options": {"host": "127.0.0.1", "port": spare_port()}}
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def test_every_kind_of_machine_has_a_file_and_every_file_is_tested() -> None:
    assert {file.stem for file in MACHINES.glob("*.yaml")} == set(KINDS)


@kinds
def test_it_serves_every_task_and_sextet_serve_takes_it(kind: str) -> None:
    file = MACHINES / f"{kind}.yaml"
    content = Launch(file, None, None, lambda _line: None).content()
    set_drains(content)
    assert list(task_configs(content)) == list(TASKS)
    assert [one.name for one in validated(content).applications] == [*TASKS, "gateway"]


@kinds
def test_ray_serve_gets_from_the_file_itself_what_sextet_serve_would_add(kind: str) -> None:
    """`serve deploy` and KubeRay read it without us: with Ray's own delays, a level would be held late."""
    given, completed = (read_yaml(MACHINES / f"{kind}.yaml") for _ in range(2))
    set_scaling(completed, MACHINES)
    assert given == completed
    levels = [deployment_of(name, given).get("autoscaling_config", {}) for name in user_configs(given)]
    assert all(DEFAULTS.keys() <= one.keys() for one in levels if "policy" in one)


@kinds
def test_everything_that_starts_finds_its_place_there(kind: str, tmp_path: Path) -> None:
    found = list(Cluster.read(elsewhere(kind, tmp_path)).findings(*machine(kind)))
    wrong = [one for one in found if one.level in ("error", "warning")]
    assert all("is to be built from" in one.text for one in wrong), [one.text for one in wrong]
    assert {one.name for one in wrong} == set(TASKS), "their artifacts, which are nowhere yet"
    named = {one.name for one in found}
    assert "num_cpus" in named
    assert ("num_gpus" in named) == kind.startswith("gpu")
    assert ("pin_cores" in named) == (kind in ("server-32", "gpu-8"))


@kinds
def test_a_machine_that_is_too_small_is_told(kind: str, tmp_path: Path) -> None:
    capacity, _ = machine(kind)
    small = replace(capacity, cores=capacity.cores / 8, ray_cpus=capacity.ray_cpus / 8)
    found = Cluster.read(elsewhere(kind, tmp_path)).findings(small, [])
    told = {one.name for one in found if one.level != "ok"} & {"num_cpus", "num_gpus", "pin_cores"}
    expected = {
        "small-cpu": set(),
        "server-32": {"pin_cores"},
        "gpu-1": {"num_gpus"},
        "gpu-8": {"num_gpus", "pin_cores"},
    }
    assert told == expected[kind] | {"num_cpus"}


def test_all_replicas_of_one_gpu_share_it_without_a_rest() -> None:
    assert sum(one.num_gpus * one.max_replicas for one in demands(read_yaml(MACHINES / "gpu-1.yaml"))) == pytest.approx(
        1
    )


def test_a_small_machine_keeps_memory_for_what_is_asked() -> None:
    content = read_yaml(MACHINES / "small-cpu.yaml")
    assert len(may_sleep(content)) == 4
    assert sum(one.first_replicas for one in demands(content)) == 3, "two tasks and the gateway"


def test_pinned_replicas_reserve_the_cores_that_they_use() -> None:
    for file in MACHINES.glob("*.yaml"):
        content = read_yaml(file)
        reserved = {one.application: one.num_cpus for one in demands(content)}
        for name, config in task_configs(content).items():
            if config.pin_cores:
                assert (config.threads or reserved[name]) <= reserved[name], f"{file.stem}: {name}"
