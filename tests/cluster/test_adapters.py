"""Adapters behind a real ingress: asked by every name, listed everywhere, added while streams go on."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai import OpenAI

from tests.artifacts import ARCHITECTURES
from tests.cluster.serving import Serving, clean_environment, write_cluster
from tests.lora import save_adapter

pytestmark = pytest.mark.cluster
TASK, NAME, OTHER = "text-generation", "pirate", "poet"
PROMPT: dict[str, Any] = {"prompt": "The river", "max_tokens": 4, "temperature": 0}


def test_adapters_are_models_of_their_own_and_one_more_comes_without_cutting_a_stream(
    models: dict[str, Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = checkpoint(ARCHITECTURES[TASK], TASK)
    for seed, name in enumerate((NAME, OTHER), start=1):
        save_adapter(base, tmp_path / "adapters" / name, seed)
    file = write_cluster(tmp_path, {TASK: models[TASK]}, text_generation={"adapters": {NAME: f"adapters/{NAME}"}})
    with Serving.start(file).wait_until_ready() as serving, httpx.Client(base_url=serving.url, timeout=60) as http:
        client = OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)

        def written(**more: Any) -> tuple[str, str]:
            answer = client.completions.create(**PROMPT | more)
            return answer.model, answer.choices[0].text

        default, plain = written(model=TASK)
        model, changed = written(model=NAME)
        assert model == NAME != default
        assert changed != plain
        by_path = http.post(f"/{TASK}/{NAME}/v1/completions", json=PROMPT).json()
        by_header = http.post("/v1/completions", json=PROMPT, headers={"x-model": NAME}).json()
        redirected = http.post(f"/models/{NAME}/v1/completions", json=PROMPT, follow_redirects=True).json()
        assert {one["choices"][0]["text"] for one in (by_path, by_header, redirected)} == {changed}
        assert [card.id for card in client.models.list()] == [default, NAME]
        command = [sys.executable, "-m", "sextet", "models", "--url", serving.url]
        printed = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True).stdout
        assert [line.split()[:2] for line in printed.splitlines()[1:]] == [
            [f"/{TASK}", default],
            [f"/{TASK}/{NAME}", NAME],
        ]

        ends: list[str] = []
        is_applied = threading.Event()

        def stream() -> None:
            body = PROMPT | {"model": NAME, "max_tokens": 150, "stream": True, "ignore_eos": True}
            while not is_applied.is_set():
                with http.stream("POST", "/v1/completions", json=body) as events:
                    ends.append([line for line in events.iter_lines() if line][-1])

        streaming = [threading.Thread(target=stream) for _ in range(2)]
        for one in streaming:
            one.start()
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        (application,) = [one for one in content["applications"] if one["name"] == TASK]
        application["deployments"][0]["user_config"]["adapters"][OTHER] = f"adapters/{OTHER}"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        serving.process.send_signal(signal.SIGUSR1)
        try:
            serving.wait_for(f"applied {file}")
        finally:
            is_applied.set()
            for one in streaming:
                one.join(60)
        assert set(ends) == {"data: [DONE]"}
        assert written(model=OTHER)[0] == OTHER
        assert http.post(f"/models/{OTHER}/v1/completions", json=PROMPT).status_code == 200, "no redirect"
        (one,) = http.get(f"/v2/models/{NAME}/stats").json()["model_stats"]
        assert (one["name"], one["inference_stats"]["success"]["count"] > 0) == (NAME, True)
        assert written(model=NAME) == (NAME, changed)
        assert serving.stop() == 0, "\n".join(serving.lines)


def test_an_adapter_that_does_not_fit_ends_the_start_in_one_line(
    models: dict[str, Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    wider = checkpoint(ARCHITECTURES[TASK], TASK, hidden_size=64)
    save_adapter(wider, tmp_path / NAME)
    file = write_cluster(tmp_path, {TASK: models[TASK]}, text_generation={"adapters": {NAME: NAME}})
    with Serving.start(file) as serving:
        assert serving.wait(60) != 0
    (line,) = [one for one in serving.lines if NAME in one]
    assert "the adapter pirate does not fit" in line
    assert "channels to" in line
