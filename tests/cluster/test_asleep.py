"""A model that nobody asks has no replica and no memory; whoever asks it next gets an answer."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deployments.cluster.ray_environment import spare_port
from deployments.config import deployment_of
from deployments.scaling.options import AUTOSCALER
from tests.cluster.serving import Serving, set_ingress, write_cluster
from tests.cluster.test_grpc import tensor

pytestmark = pytest.mark.cluster
RARE, WARM = "text-classification", "token-classification"
N_REQUESTS = 100
IDLE_S = 4
PATIENCE_S = 90.0
LOOK_S = 8


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return spare_port()


def write(folder: Path, models: dict[str, Path], **scaling: Any) -> Path:
    """RARE may sleep, WARM may not; both scale on a service level."""
    file = write_cluster(folder, {task: models[task] for task in (RARE, WARM)})
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for task, least in ((RARE, 0), (WARM, 1)):
        kwargs = {"slo_ms": 2000, "zero_after_s": IDLE_S, "down_after_s": IDLE_S}
        policy = {"policy_function": AUTOSCALER, "policy_kwargs": kwargs}
        of_task = {"min_replicas": least, "max_replicas": 2, "policy": policy, **scaling}
        deployment_of(task, content)["autoscaling_config"] = of_task
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def serving(models: dict[str, Path], grpc_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    file = write(tmp_path_factory.mktemp("asleep"), models)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    set_ingress(content, grpc_port=grpc_port)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    serving = Serving.start(file)
    try:
        yield serving.wait_until_ready()
        assert serving.stop() == 0, "\n".join(serving.lines)
    finally:
        serving.process.kill()


def entry(serving: Serving, task: str) -> dict[str, Any]:
    (found,) = [one for one in httpx.get(serving.url, timeout=10).json()["tasks"] if one["task"] == task]
    return dict(found)


def wait_until_asleep(serving: Serving) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while serving.replicas(RARE) or not entry(serving, RARE)["asleep"]:
        assert time.monotonic() < give_up_at, entry(serving, RARE)
        time.sleep(0.2)


async def ask_at_once(url: str, n: int) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=n)) as client:
        bodies = [{"inputs": f"a film about {number}"} for number in range(n)]
        return list(await asyncio.gather(*(client.post(f"/{RARE}", json=body) for body in bodies)))


def test_it_starts_without_a_replica_and_is_ready(serving: Serving) -> None:
    assert serving.replicas(RARE) == []
    assert f"{RARE}" in serving.lines
    assert "  asleep: its first request starts it" in serving.lines
    ready = httpx.get(f"{serving.url}/ready")
    assert (ready.status_code, set(ready.json()["tasks"])) == (200, {RARE, WARM})
    found = entry(serving, RARE)
    assert (found["ready"], found["asleep"], found["replicas"], found["model"]) == (True, True, 0, None)
    assert entry(serving, WARM)["replicas"] == 1


def test_a_hundred_requests_at_once_to_a_model_without_a_replica_are_all_answered(serving: Serving) -> None:
    wait_until_asleep(serving)

    responses = asyncio.run(ask_at_once(serving.url, N_REQUESTS))

    assert Counter(one.status_code for one in responses) == {200: N_REQUESTS}
    assert all(one.json()[0][0].keys() == {"label", "score"} for one in responses)
    found = entry(serving, RARE)
    assert (found["asleep"], found["replicas"] >= 1, found["model"]["id"] is not None) == (False, True, True)


def test_its_cold_start_is_measured_by_parts(serving: Serving) -> None:
    asyncio.run(ask_at_once(serving.url, 1))
    (url,) = [line.removeprefix("metrics ") for line in serving.lines if line.startswith("metrics ")]
    families = {one.name: one.samples for one in text_string_to_metric_families(httpx.get(url, timeout=30).text)}
    parts = {one.labels["part"]: one.value for one in families["sextet_start_seconds"] if one.labels["task"] == RARE}
    assert set(parts) == {"process", "fetch", "load", "measure"}
    assert all(seconds >= 0 for seconds in parts.values())


def test_its_memory_is_given_back_once_nobody_asks_and_the_next_one_is_answered(serving: Serving) -> None:
    asyncio.run(ask_at_once(serving.url, 1))
    (held, *_) = serving.replicas(RARE)
    assert held.memory_info().rss > 0

    wait_until_asleep(serving)

    assert not held.is_running()
    found = entry(serving, RARE)
    assert (found["ready"], found["model"]["id"] is not None) == (True, True), "what it said last"
    assert httpx.get(f"{serving.url}/ready").status_code == 200
    (answer,) = asyncio.run(ask_at_once(serving.url, 1))
    assert answer.status_code == 200
    assert entry(serving, WARM)["replicas"] == 1


def test_a_call_of_grpc_wakes_it_too(serving: Serving, grpc_port: int) -> None:
    wait_until_asleep(serving)
    with triton.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
        assert client.is_model_ready(RARE)
        assert serving.replicas(RARE) == [], "asking whether it is ready does not wake it"
        answer = client.infer(RARE, [tensor(["what a film"])], client_timeout=PATIENCE_S)
    assert json.loads(answer.as_numpy("output").reshape(-1)[0])


def test_a_deadline_holds_while_it_starts(serving: Serving) -> None:
    wait_until_asleep(serving)
    late = httpx.post(
        f"{serving.url}/{RARE}", json={"inputs": "a"}, headers={"x-request-timeout-seconds": "0.5"}, timeout=30
    )
    assert (late.status_code, late.json()["error_type"]) == (408, "timeout")


def test_a_request_wakes_it_at_once_however_seldom_ray_serve_looks_and_reports(
    models: dict[str, Path], tmp_path: Path, closing: ExitStack
) -> None:
    """By itself its controller would look three times until a replica answers, and learn of the request after a report
    that has not counted it.
    """
    file = write(tmp_path, models, metrics_interval_s=60.0)
    seldom = closing.enter_context(Serving.start(file, RAY_SERVE_CONTROL_LOOP_INTERVAL_S=str(LOOK_S)))
    seldom.wait_until_ready()
    time.sleep(2)  # the proxy counts no request meanwhile

    deadline = {"x-request-timeout-seconds": str(2 * LOOK_S)}
    answer = httpx.post(f"{seldom.url}/{RARE}", json={"inputs": "a"}, headers=deadline, timeout=PATIENCE_S)

    assert answer.status_code == 200
    assert seldom.stop() == 0, "\n".join(seldom.lines)
