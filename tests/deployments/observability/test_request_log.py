"""The request log: a line of JSON for slow and for sampled requests, without texts and keys."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.http.request import CLIENT_HEADER
from deployments.observability import request_log
from deployments.observability.request_log import LogFile, RequestLog
from deployments.task_server import TaskServer
from pipelines.runtime.artifact import ModelArtifact
from tests.deployments.asking import asking, post
from tests.deployments.observability.observed import observed

TASK, GENERATION = "text-classification", "text-generation"
TEXT, KEY = "nobody may read this", "sk-very-secret"


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def serve(exported: Callable[..., Path], lines: list[str]) -> Callable[..., TaskServer]:
    def start(task: str, architecture: str, **user_config: Any) -> TaskServer:
        model = exported(architecture, task)
        return observed(task, model, lambda artifact: RequestLog(artifact, "r1", lines.append), **user_config)

    return start


def test_a_line_says_all_but_texts_and_keys(serve: Callable[..., TaskServer], lines: list[str], exported: Any) -> None:
    server = serve(TASK, "bert", request_log={"sample": 1})
    named = {CLIENT_HEADER.replace("-", "_"): "alice", "authorization": f"Bearer {KEY}", "x_request_id": "id-1"}
    answer = post(server, {"inputs": [TEXT, "b"]}, **named)
    post(server, {"inputs": TEXT, "parameters": {TEXT: 1}}, **named | {"x_request_id": "x" * 10_000})

    artifact = ModelArtifact.open(exported("bert", TASK))
    first, second = map(json.loads, lines)
    assert set(first) == set(second)
    assert {name: first[name] for name in ("id", "task", "model", "version", "replica", "protocol", "client")} == {
        "id": "id-1",
        "task": TASK,
        "model": artifact.manifest.source.name,
        "version": artifact.version,
        "replica": "r1",
        "protocol": "huggingface",
        "client": "alice",
    }
    assert (first["status"], first["reason"], first["written_tokens"]) == (200, "", 0)
    assert first["read_tokens"] == int(answer.headers["x-compute-tokens"]) > 0
    assert first["total_s"] >= first["inference_s"] > 0
    assert (second["status"], second["reason"], len(second["id"])) == (400, "validation", 256)
    assert not [line for line in lines if TEXT in line or KEY in line or "\n" in line]


def test_only_what_is_slower_than_the_threshold_is_logged_and_a_change_applies_in_place(
    serve: Callable[..., TaskServer], lines: list[str], exported: Any
) -> None:
    server = serve(TASK, "bert", request_log={"slower_than_s": 60})
    post(server, {"inputs": "a"})
    assert lines == []
    loaded = server._now.pipeline

    async def ask(client: Any) -> None:
        await server.reconfigure({"model": str(exported("bert", TASK)), "request_log": {"slower_than_s": 0}})
        await client.post(f"/{TASK}", json={"inputs": "a"})

    asking(server, ask)
    assert server._now.pipeline is loaded
    assert len(lines) == 1


def test_a_sample_is_a_share_of_all(
    serve: Callable[..., TaskServer], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, drawn = serve(TASK, "bert", request_log={"sample": 0.3}), iter([0.29, 0.3, 0.9, 0.0])
    monkeypatch.setattr(random, "random", lambda: next(drawn))
    for _ in range(4):
        post(server, {"inputs": "a"})
    assert len(lines) == 2


def test_a_stream_is_logged_once_at_its_end(serve: Callable[..., TaskServer], lines: list[str]) -> None:
    server = serve(GENERATION, "gpt2", request_log={"sample": 1})
    post(server, {"inputs": TEXT, "stream": True, "parameters": {"max_new_tokens": 4, "do_sample": False}})

    (line,) = map(json.loads, lines)
    assert (line["status"], line["written_tokens"], line["protocol"]) == (200, 4, "huggingface")
    assert 0 < line["first_token_s"] <= line["total_s"]


def test_a_generation_that_does_not_stream_says_when_its_first_token_was_there(
    serve: Callable[..., TaskServer], lines: list[str]
) -> None:
    server = serve(GENERATION, "gpt2", request_log={"sample": 1})
    post(server, {"inputs": TEXT, "parameters": {"max_new_tokens": 20, "do_sample": False}})
    post(serve(TASK, "bert", request_log={"sample": 1}), {"inputs": TEXT})

    generated, encoded = map(json.loads, lines)
    assert generated["queue_s"] < generated["first_token_s"] < generated["total_s"]
    assert encoded["first_token_s"] is None


def test_lines_reach_the_file_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "FILE_BYTES", 1000)
    log = LogFile(tmp_path / "requests.jsonl")
    for number in range(200):
        log.write(json.dumps({"number": number, "filler": "x" * 80}))
    log.close()

    kept = [json.loads(line) for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert max(one["number"] for one in kept) == 199
    assert len(list(tmp_path.iterdir())) == request_log.FILES
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1000 * request_log.FILES


def test_a_file_that_cannot_be_written_costs_lines_and_no_request(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "missing" / "requests.jsonl")
    log.write("{}")
    log.close()
