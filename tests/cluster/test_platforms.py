"""`sextet serve --platform`: a real container's life, from the first health check to the signal that ends it."""

import time
from pathlib import Path

import httpx
import pytest

from deployments.cluster.ray_environment import spare_port
from tests.cluster.serving import READY_S, Serving, left_over, write_cluster

pytestmark = pytest.mark.cluster
TASK = "text-classification"


def statuses_until_ready(serving: Serving, health: str) -> list[int]:
    """What the health route answered (0: nobody listened) until `sextet serve` said that it is ready."""
    seen: list[int] = []
    give_up_at = time.monotonic() + READY_S
    while not any(line.startswith("ready") for line in serving.lines):
        assert serving.process.poll() is None, "\n".join(serving.lines)
        assert time.monotonic() < give_up_at, "\n".join(serving.lines)
        try:
            seen.append(httpx.get(serving.url + health, timeout=2).status_code)
        except httpx.HTTPError:
            seen.append(0)
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize(
    ("platform", "environment", "health", "predict", "body"),
    [
        ("sagemaker", "SAGEMAKER_BIND_TO_PORT", "/ping", "/invocations", {"inputs": "good"}),
        ("vertex", "AIP_HTTP_PORT", "/v1/e/1", "/v1/e/1:predict", {"instances": ["good"]}),
    ],
)
def test_a_container_is_healthy_once_its_model_is_ready_and_answers_until_it_is_stopped(
    models: dict[str, Path], tmp_path: Path, platform: str, environment: str, health: str, predict: str, body: object
) -> None:
    port = spare_port()
    given = {environment: str(port), "AIP_HEALTH_ROUTE": health, "AIP_PREDICT_ROUTE": predict}
    cluster = write_cluster(tmp_path, {TASK: models[TASK]})
    serving = Serving.start(cluster, "--platform", platform, port=port, **given)
    try:
        before = statuses_until_ready(serving, health)
        assert httpx.get(serving.url + health, timeout=2).status_code == 200
        answer = httpx.post(serving.url + predict, json=body, timeout=30)
        tree = serving.tree()
        assert serving.stop() == 0, "\n".join(serving.lines)
    finally:
        serving.process.kill()

    ready_at = before.index(200) if 200 in before else len(before)
    assert ready_at > 0
    assert set(before[ready_at:]) <= {200}  # never healthy, then not
    assert set(before[:ready_at]) <= {0, 404, 503}
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"] if platform == "vertex" else answer.json()
    assert {one["label"] for one in found[0]} == {"negative", "neutral", "positive"}
    assert left_over(tree) == []
