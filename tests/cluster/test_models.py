"""A task with two models behind one ingress: chosen by clients, shared by a file, listed everywhere."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.http as triton
import yaml
from openai import NotFoundError, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.serving import Serving, clean_environment, set_ingress, write_cluster

pytestmark = pytest.mark.cluster
TASK, LARGE = "text-generation", "large"
PROMPT: dict[str, Any] = {"prompt": "The river", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def folder(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, exported: Any) -> Path:
    """With a cluster.yaml of text-generation, another model of it, and a file of shares."""
    folder = tmp_path_factory.mktemp("models")
    file = write_cluster(folder, {TASK: models[TASK]}, text_generation={"request_log": {"sample": 1}})
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    (default,) = [one for one in content["applications"] if one["name"] == TASK]
    other = deepcopy(default)
    other |= {"name": f"{TASK}.{LARGE}", "route_prefix": f"/{TASK}/{LARGE}", "args": {"task": TASK, "model": LARGE}}
    other["deployments"][0]["user_config"]["model"] = str(exported("gpt2", TASK))
    content["applications"].append(other)
    set_ingress(content, traffic="traffic")
    (folder / "traffic").write_text("")
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Serving]:
    serving = Serving.start(folder / "cluster.yaml")
    try:
        yield serving.wait_until_ready()
        assert serving.stop() == 0, "\n".join(serving.lines)
    finally:
        serving.process.kill()


@pytest.fixture
def http(serving: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        yield client


def answered(http: httpx.Client, path: str = "/v1/completions", **more: Any) -> str:
    headers = more.pop("headers", {})
    return str(http.post(path, json=PROMPT | more, headers=headers).raise_for_status().json()["model"])


def test_openais_client_chooses_lists_and_is_told_of_names_that_none_has(serving: Serving, http: httpx.Client) -> None:
    client = OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)
    default = answered(http)
    assert {card.id for card in client.models.list()} == {default, TASK, LARGE}
    assert client.models.retrieve(LARGE).id == LARGE
    for name, expected in ((LARGE, LARGE), (TASK, default), (default, default)):
        assert client.completions.create(model=name, **PROMPT).model == expected
        chunks = list(client.completions.create(model=name, stream=True, **PROMPT))
        assert {chunk.model for chunk in chunks} == {expected}
    with pytest.raises(NotFoundError, match="there is no model 'nobody'; allowed: .*large"):
        client.completions.create(model="nobody", **PROMPT)
    # The body is larger than what HAProxy looks at, and names the model last.
    long = {"prompt": "x" * 100_000, "model": LARGE}
    moved = http.post("/v1/completions", json=long)
    assert (moved.status_code, moved.headers["location"]) == (308, f"/{TASK}/{LARGE}/v1/completions")


def test_path_header_and_other_protocols_choose(serving: Serving, http: httpx.Client) -> None:
    default = answered(http)
    assert answered(http, f"/{TASK}/{LARGE}/v1/completions") == LARGE
    assert answered(http, headers={"x-model": LARGE}) == LARGE
    assert answered(http, headers={"x-model": TASK}) == default
    assert http.post(f"/{TASK}", json={"inputs": "a"}, headers={"x-model": "no"}).status_code == 404
    client = triton.InferenceServerClient(serving.url.removeprefix("http://"))
    assert {one["name"] for one in client.get_model_repository_index()} == {TASK, LARGE}
    assert client.get_model_metadata(LARGE)["name"] == LARGE
    assert client.is_model_ready(LARGE)
    others = http.get("/").json()["tasks"][0]["others"]
    assert [(one["name"], one["route"], one["ready"]) for one in others] == [(LARGE, f"/{TASK}/{LARGE}", True)]
    command = [sys.executable, "-m", "sextet", "models", "--url", serving.url]
    printed = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True).stdout
    assert [line.split()[:2] for line in printed.splitlines()[1:]] == [
        [f"/{TASK}", default],
        [f"/{TASK}/{LARGE}", LARGE],
    ]


def test_a_share_moves_while_requests_run_and_metrics_and_logs_say_who_answered(
    serving: Serving, http: httpx.Client, folder: Path
) -> None:
    client = OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)
    default = answered(http)

    def asked(n: int) -> Counter[str]:
        return Counter(answered(http) for _ in range(n))

    assert asked(10) == {default: 10}
    for percent in (20, 100, 0):
        (folder / "traffic").write_text(f"{TASK} {LARGE} {percent}\n")
        give_up_at = time.monotonic() + 30
        while abs((found := asked(20))[LARGE] - percent / 5) > 1:
            assert time.monotonic() < give_up_at, found
        assert client.completions.create(model=default, **PROMPT).model == default
        with pytest.raises(NotFoundError, match="there is no model 'nobody'; allowed: .*large"):
            client.completions.create(model="nobody", **PROMPT)
    answered(http, headers={"x-request-id": "who-answered-this", "x-model": LARGE})
    (url,) = [line.removeprefix("metrics ") for line in serving.lines if line.startswith("metrics ")]
    families = {one.name: one.samples for one in text_string_to_metric_families(httpx.get(url, timeout=30).text)}
    counted = Counter[str]()
    for sample in families["sextet_requests"]:
        if sample.labels["status"] == "200" and sample.labels["protocol"] == "openai":
            counted[sample.labels["model"]] += int(sample.value)
    assert set(counted) == {default, LARGE}
    assert min(counted.values()) >= 20
    (log_folder,) = {Path(one.path).parent for one in logs(serving)}
    give_up_at, found_lines = time.monotonic() + 30, list[str]()
    while not found_lines and time.monotonic() < give_up_at:
        texts = (file.read_text(encoding="utf-8") for file in log_folder.glob("requests_*.jsonl"))
        found_lines = [line for text in texts for line in text.splitlines() if '"id":"who-answered-this"' in line]
        time.sleep(0.1)
    (line,) = found_lines
    assert f'"model":"{LARGE}"' in line
    assert PROMPT["prompt"] not in line


def logs(serving: Serving) -> list[Any]:
    """The request logs that the replicas have open."""
    return [
        file
        for process in serving.tree()
        if " ".join(process.cmdline()).startswith("ray::ServeReplica")
        for file in process.open_files()
        if Path(file.path).name.startswith("requests_")
    ]
