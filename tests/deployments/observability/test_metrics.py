"""Metrics of a served model, read by Prometheus' own parser."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from deployments.observability.metrics import Metrics
from deployments.task_server import TaskServer
from pipelines.runtime.artifact import ModelArtifact
from tests.deployments.asking import asking, post
from tests.deployments.observability.observed import observed, series_of, values

TASK, GENERATION = "text-classification", "text-generation"
SECRET = "the client's own words"
CHAT = {"prompt": "The river", "max_tokens": 6, "temperature": 0}
Served = tuple[TaskServer, Metrics]


@pytest.fixture
def classifier(exported: Callable[..., Path]) -> Served:
    metrics = Metrics("r1")
    return observed(TASK, exported("bert", TASK), metrics.observer), metrics


@pytest.fixture
def generator(exported: Callable[..., Path]) -> Served:
    metrics = Metrics("r1")
    slots = {"slots": 2, "max_tokens": 64}
    return observed(GENERATION, exported("qwen2", GENERATION), metrics.observer, slots=slots), metrics


def test_a_request_is_counted_with_its_model_protocol_and_outcome(classifier: Served, exported: Any) -> None:
    server, metrics = classifier
    assert post(server, {"inputs": [SECRET, "two"]}).status_code == 200
    assert post(server, {"inputs": "one"}, "/predict").status_code == 200
    assert post(server, {"inputs": 3}).status_code == 400
    assert post(server, {"inputs": "one"}, f"/{SECRET}").status_code == 404

    artifact = ModelArtifact.open(exported("bert", TASK))
    model = {"task": TASK, "model": artifact.manifest.source.name, "version": artifact.version, "replica": "r1"}
    counted = {
        tuple(dict(labels)[name] for name in ("protocol", "status", "reason")): value
        for (name, labels), value in series_of(generate_latest(metrics.registry).decode()).items()
        if name == "sextet_requests_total" and model.items() <= dict(labels).items()
    }
    assert counted == {
        ("huggingface", "200", ""): 1,
        ("text_embeddings_inference", "200", ""): 1,
        ("huggingface", "400", "validation"): 1,
        ("none", "404", "not_found"): 1,
    }
    for part in ("", "_queue", "_tokenization", "_inference"):
        assert values(metrics, f"sextet_request{part}_seconds_count", protocol="huggingface", **model) == [1]
    (total,) = values(metrics, "sextet_request_seconds_sum", protocol="huggingface")
    (inference,) = values(metrics, "sextet_request_inference_seconds_sum", protocol="huggingface")
    assert 0 < inference < total
    assert SECRET not in generate_latest(metrics.registry).decode()


def test_batches_count_rows_and_the_waste_of_padding(classifier: Served) -> None:
    server, metrics = classifier
    tokens = int(post(server, {"inputs": ["a", "a b c d e f g h"]}).headers["x-compute-tokens"])

    assert values(metrics, "sextet_tokens_total") == [tokens]
    assert values(metrics, "sextet_padded_tokens_total")[0] >= tokens
    assert values(metrics, "sextet_batch_rows_sum") == [2]


def test_a_start_tells_its_parts_and_which_artifact_is_loaded(classifier: Served, exported: Any) -> None:
    _, metrics = classifier
    for part in ("fetch", "load", "measure"):
        (seconds,) = values(metrics, "sextet_start_seconds", part=part)
        assert seconds >= 0
    artifact = ModelArtifact.open(exported("bert", TASK))
    assert values(metrics, "sextet_artifact_info", version=artifact.version, precision="fp32", parity="passed") == [1]
    assert values(metrics, "sextet_queue_requests", task=TASK) == [0]
    assert values(metrics, "sextet_slots") == []


def test_a_new_model_takes_the_place_of_the_old_one(classifier: Served, exported: Any) -> None:
    server, metrics = classifier
    other = exported("distilbert", TASK)

    async def ask(client: httpx.AsyncClient) -> None:
        await server.reconfigure({"model": str(other)})
        await asyncio.gather(*server._retiring)
        await client.post(f"/{TASK}", json={"inputs": "a"})

    asking(server, ask)

    version = ModelArtifact.open(other).version
    assert values(metrics, "sextet_artifact_info") == values(metrics, "sextet_artifact_info", version=version) == [1]
    assert values(metrics, "sextet_queue_tokens") == values(metrics, "sextet_queue_tokens", version=version) == [0]
    assert values(metrics, "sextet_requests_total", version=version, status="200") == [1]


def test_the_same_model_loaded_anew_has_each_series_once(classifier: Served, exported: Any) -> None:
    server, metrics = classifier

    async def ask(client: httpx.AsyncClient) -> None:
        await server.reconfigure({"model": str(exported("bert", TASK)), "threads": 2})

    asking(server, ask)
    assert values(metrics, "sextet_queue_tokens") == [0]
    assert values(metrics, "sextet_artifact_info") == [1]


def test_a_stream_counts_its_first_token_the_gaps_and_what_it_wrote(generator: Served) -> None:
    server, metrics = generator
    response = post(server, CHAT | {"stream": True}, "/v1/completions")
    assert response.text.endswith("data: [DONE]\n\n")

    (gaps,) = values(metrics, "sextet_inter_token_seconds_count", protocol="openai")
    assert values(metrics, "sextet_first_token_seconds_count", protocol="openai") == [1]
    assert values(metrics, "sextet_generated_tokens_total") == [gaps + 1] == [6]
    assert values(metrics, "sextet_requests_total", protocol="openai", status="200") == [1]


def test_an_answer_that_is_not_streamed_counts_its_first_token_too(generator: Served) -> None:
    server, metrics = generator
    assert post(server, CHAT, "/v1/completions").status_code == 200

    (first_s,) = values(metrics, "sextet_first_token_seconds_sum", protocol="openai")
    (total_s,) = values(metrics, "sextet_request_seconds_sum", protocol="openai")
    assert values(metrics, "sextet_first_token_seconds_count", protocol="openai") == [1]
    assert values(metrics, "sextet_inter_token_seconds_count", protocol="openai") == [0]
    assert 0 < first_s < total_s


def test_slots_and_the_prefix_cache_are_counted(generator: Served) -> None:
    server, metrics = generator
    for _ in range(2):
        assert post(server, CHAT, "/v1/completions").status_code == 200

    (asked,), (reused,) = (values(metrics, f"sextet_prompt_tokens{one}_total") for one in ("", "_reused"))
    assert 0 < reused < asked
    assert values(metrics, "sextet_slots") == [2]
    assert values(metrics, "sextet_slots_taken") == values(metrics, "sextet_kv_cache_tokens_held") == [0]
    assert values(metrics, "sextet_kv_cache_tokens") == [128]


def test_work_in_slots_and_in_the_queue_shows_while_it_lasts_and_a_client_that_leaves_is_counted(
    generator: Served,
) -> None:
    server, metrics = generator
    long = {"prompt": "The river", "max_tokens": 40, "n": 2}

    async def ask(client: httpx.AsyncClient) -> tuple[float, float, float]:
        asked = [
            asyncio.create_task(client.post(f"/{GENERATION}/v1/completions", json=long | {"seed": seed}))
            for seed in range(8)
        ]
        seen = (0.0, 0.0, 0.0)
        while not seen[0] or not seen[1]:
            await asyncio.sleep(0)
            taken, waiting, held = (
                values(metrics, f"sextet_{one}")[0] for one in ("slots_taken", "queue_requests", "kv_cache_tokens_held")
            )
            seen = (max(seen[0], taken), max(seen[1], waiting), max(seen[2], held))
        asked[-1].cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return seen

    taken, waiting, _ = asking(server, ask)
    assert taken == 2
    assert 1 <= waiting <= 8
    assert values(metrics, "sextet_queue_requests") == values(metrics, "sextet_queue_rows") == [0]
    assert values(metrics, "sextet_requests_total", status="499", reason="client_left") == [1]


def test_a_refusal_says_in_a_word_which_bound_it_met(exported: Callable[..., Path]) -> None:
    metrics = Metrics()
    server = observed(TASK, exported("bert", TASK), metrics.observer, queue={"max_queue_rows": 4})

    async def ask(client: httpx.AsyncClient) -> list[int]:
        body = {"inputs": ["a"] * 3}
        answers = await asyncio.gather(*(client.post(f"/{TASK}", json=body) for _ in range(8)))
        return [one.status_code for one in answers]

    refused = asking(server, ask).count(429)
    assert refused > 0
    assert values(metrics, "sextet_requests_total", status="429", reason="queue_rows") == [refused]
