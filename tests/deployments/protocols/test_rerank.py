"""Reranking by a tiny cross-encoder: the order and the scores of the pipeline's own logits."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import pipelines
from deployments.task_server import TaskServer
from tests.deployments.asking import post
from tests.deployments.test_task_server import started

TASK = "text-classification"
QUERY, TEXTS = "what a film", ["the story is long", "a bad film", "정말 좋았어요", "what a film"]


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    return exported("bert", TASK, num_labels=1)


@pytest.fixture(scope="module")
def server(model: Path) -> TaskServer:
    return started(TASK, model)


@pytest.fixture(scope="module")
def logits(model: Path) -> list[float]:
    """Of the query beside each text, by a call of the pipeline."""
    pipeline = pipelines.load(model)
    pairs = [{"text": QUERY, "text_pair": text} for text in TEXTS]
    return [pipeline(pair, function_to_apply="none", top_k=1)[0]["score"] for pair in pairs]


def order(logits: list[float]) -> list[int]:
    return sorted(range(len(logits)), key=lambda index: -round(logits[index], 5))


def test_texts_come_best_first_with_the_sigmoid_of_their_logit_or_the_logit(
    server: TaskServer, logits: list[float]
) -> None:
    body = {"query": QUERY, "texts": TEXTS}
    ranked = post(server, body, "/rerank").json()
    raw = post(server, body | {"raw_scores": True, "return_text": True}, "/rerank").json()

    assert [one["index"] for one in ranked] == [one["index"] for one in raw] == order(logits)
    for one, two in zip(ranked, raw, strict=True):
        assert one["score"] == pytest.approx(1 / (1 + math.exp(-logits[one["index"]])), abs=1e-5)
        assert two["score"] == pytest.approx(logits[two["index"]], abs=1e-5)
        assert two["text"] == TEXTS[two["index"]]
        assert set(one) == {"index", "score"}


def test_coheres_form_has_the_first_of_the_same_order(server: TaskServer, logits: list[float]) -> None:
    documents = [TEXTS[0], *({"text": text} for text in TEXTS[1:])]
    body = {"model": "any", "query": QUERY, "documents": documents, "top_n": 2, "return_documents": True}
    answer = post(server, body, "/v1/rerank").json()

    assert [one["index"] for one in answer["results"]] == order(logits)[:2]
    assert [one["document"]["text"] for one in answer["results"]] == [TEXTS[index] for index in order(logits)[:2]]
    assert answer["id"]
    plain = post(server, {"query": QUERY, "documents": TEXTS}, "/v1/rerank").json()["results"]
    assert [set(one) for one in plain] == [{"index", "relevance_score"}] * len(TEXTS)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/rerank", {"query": QUERY}, 400, "texts is missing"),
        ("/rerank", {"query": "", "texts": ["a"]}, 400, "query is empty"),
        ("/rerank", {"query": "a", "texts": []}, 400, "texts"),
        ("/rerank", {"query": "a", "texts": ["b", 3]}, 400, "texts[1] is 3"),
        ("/rerank", {"query": "a", "texts": ["b", "c " * 5000]}, 422, "texts[1] has"),
        ("/rerank", {"query": "a", "texts": ["b"] * 1025}, 413, "texts has 1025 elements; allowed: at most 1024"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, 400, "documents[0]"),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b", {"": ""}]},
            400,
            "documents[1] has a key that is empty; allowed: a text",
        ),
        ("/v1/rerank", {"query": "a", "documents": [{"b" * 9999: ""}]}, 400, "documents[0] has a key that has 9999"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n is 0"),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b"], "max_chunks_per_doc": 10},
            400,
            "max_chunks_per_doc is 10; a",
        ),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "rank_fields": []}, 400, "rank_fields"),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b", {"text": "c"}], "rank_fields": ["title"]},
            400,
            "documents[1] has no text in title; allowed: a text, or an object with the fields title",
        ),
        ("/v2/rerank", {"query": "a", "documents": [{"text": "b"}]}, 400, "documents[0]"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "return_documents": True}, 400, "return_documents"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 2}, 400, "max_tokens_per_doc is 2; a"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "priority": 5}, 400, "priority is 5; allowed: 0; the header"),
    ],
)
def test_a_body_that_is_wrong_is_told_where(
    server: TaskServer, path: str, body: Any, status: int, message: str
) -> None:
    response = post(server, body, path)

    assert response.status_code == status, response.text
    assert message in response.json()["error"]


def test_a_pair_that_is_too_long_is_cut_where_the_client_allows_it(server: TaskServer) -> None:
    texts = ["b", "c " * 5000]
    assert post(server, {"query": "a", "texts": texts, "truncate": True}, "/rerank").status_code == 200
    assert post(server, {"query": "a", "documents": texts}, "/v1/rerank").status_code == 200


def test_the_fields_of_a_document_are_read_in_their_order_and_come_back_with_all_others(
    server: TaskServer, model: Path
) -> None:
    documents = [{"title": "a film", "text": "the story is long", "id": "7"}, "a bad film"]
    body = {"query": QUERY, "documents": documents, "rank_fields": ["title", "text"], "return_documents": True}
    results = {one["index"]: one for one in post(server, body, "/v1/rerank").json()["results"]}

    pair = {"text": QUERY, "text_pair": "a film\nthe story is long"}
    expected = pipelines.load(model)(pair, function_to_apply="sigmoid", top_k=1)[0]["score"]
    assert results[0]["relevance_score"] == pytest.approx(expected, abs=1e-5)
    assert [results[index]["document"] for index in (0, 1)] == [documents[0], {"text": "a bad film"}]


def test_coheres_second_api_is_answered_alike(server: TaskServer) -> None:
    body = {"model": "rerank-v3.5", "query": QUERY, "documents": TEXTS, "top_n": 3}
    first = post(server, body, "/v1/rerank").json()
    second = post(server, body | {"max_tokens_per_doc": 4096, "priority": 0}, "/v2/rerank").json()

    assert second["results"] == first["results"]
    assert (first["meta"]["api_version"], second["meta"]["api_version"]) == ({"version": "1"}, {"version": "2"})


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_a_model_is_looked_at_where_the_task_has_several(server: TaskServer, path: str) -> None:
    def asked(name: str, **headers: str) -> httpx.Response:
        return post(server, {"model": name, "query": "a", "documents": ["b"]}, path, **headers)

    others = {"x_sextet_models": "large small"}
    assert asked("nobody").status_code == 200, "with one model any name is that"
    unknown = asked("nobody", **others)
    assert unknown.status_code == 404
    own = server.describe()["id"]
    assert unknown.json()["error"] == f"there is no model 'nobody'; allowed: {own}, {TASK}, large, small"
    assert asked(TASK, **others).status_code == asked(own, **others).status_code == 200
    for name, where, headers in (
        ("large", "large", others),
        (own + "x", "default", others | {"x_sextet_drawn": TASK}),
    ):
        elsewhere = asked(name, **headers)
        assert (elsewhere.status_code, elsewhere.headers["location"]) == (308, f"/{TASK}/{where}{path}")


def test_a_model_of_several_labels_says_what_it_lacks(exported: Callable[..., Path]) -> None:
    server = started(TASK, exported("bert", TASK))

    for path, field in (("/rerank", "texts"), ("/v1/rerank", "documents"), ("/v2/rerank", "documents")):
        response = post(server, {"query": "a", field: ["b"]}, path)
        assert response.status_code == 400
        assert "labels; allowed: one that has one, a cross-encoder" in response.json()["error"]
