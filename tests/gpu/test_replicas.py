"""Several replicas of Ray Serve on one GPU, and one that dies. Without a GPU, Ray is told that there is one."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.cluster.serving import READY_S, Serving, left_over, write_cluster

pytestmark = pytest.mark.cluster

TASK = "text-classification"
BODY = {"inputs": ["good", "bad"]}
LIMIT_BYTES = 512 * 2**20
CONTEXT_BYTES = 2**30  # of CUDA and its libraries, in each process beside the arena
OTHERS_S = 20.0  # how long other processes may have memory of the GPU


@pytest.fixture
def used_before(device: str) -> int:
    return used_bytes(device)


@pytest.fixture
def serving(used_before: int, device: str, exported_for: Callable[..., Path], tmp_path: Path) -> Iterator[Serving]:
    """Two replicas that share a GPU."""
    settings = {"device": device, **({"gpu_mem_limit_bytes": LIMIT_BYTES} if device == "cuda" else {})}
    path = write_cluster(tmp_path, {TASK: exported_for("bert", TASK)}, text_classification=settings)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    (deployment,) = content["applications"][0]["deployments"]
    deployment.pop("autoscaling_config")
    deployment |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1, "num_gpus": 0.5}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    started = Serving.start(path, RAY_OVERRIDE_RESOURCES='{"GPU": 1}' if device == "cpu" else "{}")
    try:
        yield started.wait_until_ready()
        tree = started.tree()
        assert started.stop() == 0, "\n".join(started.lines)
        assert left_over(tree) == []
    finally:
        started.process.kill()


def replicas(serving: Serving) -> list[psutil.Process]:
    found = []
    for one in serving.tree():
        with suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            if " ".join(one.cmdline()).startswith(f"ray::ServeReplica:{TASK}:"):
                found.append(one)
    return found


def test_two_replicas_share_a_gpu_within_their_bounds_and_one_that_dies_is_replaced(
    used_before: int, serving: Serving, device: str
) -> None:
    before = replicas(serving)
    assert len(before) == 2
    # The exports of proof.sh compute on the GPU meanwhile; arenas of replicas do not shrink.
    give_up_at = time.monotonic() + OTHERS_S
    while (used := used_bytes(device) - used_before) > 2 * (LIMIT_BYTES + CONTEXT_BYTES):
        assert time.monotonic() < give_up_at, f"the replicas take {used} bytes"
        time.sleep(0.5)

    give_up_at = time.monotonic() + READY_S
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(asked_until, serving, lambda: len(replicas(serving)) == 2 and replicas(serving) != before)
        before[0].kill()
        statuses = asking.result(give_up_at - time.monotonic())

    assert 200 in statuses
    assert set(statuses) <= {200, 503}, "a request that was inside the dead one may be refused, never lost"
    assert httpx.post(f"{serving.url}/{TASK}", json=BODY, timeout=60).status_code == 200
    assert before[1].is_running()


def asked_until(serving: Serving, done: Callable[[], bool]) -> list[int]:
    """The statuses of requests, one after another, until `done`."""
    statuses = []
    while not done():
        statuses.append(httpx.post(f"{serving.url}/{TASK}", json=BODY, timeout=60).status_code)
        time.sleep(0.05)
    return statuses


def used_bytes(device: str) -> int:
    """Memory of the GPU that is taken, by whomever; 0 on the CPU provider, whose arenas have no bound."""
    import torch

    free, total = torch.cuda.mem_get_info(0) if device == "cuda" else (0, 0)
    return int(total - free)
