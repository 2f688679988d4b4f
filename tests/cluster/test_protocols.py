"""The other dialects, with their own clients unmodified: at the task, and at the root by an alias of it."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from huggingface_hub import InferenceClient
from tritonclient.utils import InferenceServerException

import pipelines
from tests.cluster.serving import Serving
from tests.cluster.test_tasks import QUESTION, approximately

pytestmark = pytest.mark.cluster
MESSAGES: Any = [{"role": "user", "content": "강이 어디로 흘러요? 😀"}]
ASKED: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}
TEXTS = ["what a film", "정말 좋았어요 😀"]


@pytest.fixture(scope="module", params=["", "/text-generation", "/models/text-generation"])
def base(cluster: Serving, request: pytest.FixtureRequest) -> str:
    return f"{cluster.url}{request.param}"


@pytest.fixture(scope="module")
def chat(models: dict[str, Path]) -> str:
    """What transformers' own template and greedy search say to MESSAGES."""
    from transformers import AutoTokenizer

    pipeline = pipelines.load(models["text-generation"])
    manifest = pipeline.artifact.manifest
    tokenizer = AutoTokenizer.from_pretrained(manifest.source.checkpoint)
    prompt = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    answer = pipeline(prompt, max_new_tokens=12, do_sample=False, return_full_text=False)
    return str(answer[0]["generated_text"])


def counts(usage: Any) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def test_openais_client_chats_streams_and_lists_models(base: str, chat: str, closing: ExitStack) -> None:
    client = closing.enter_context(openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0))

    whole = client.chat.completions.create(model="dummy", **ASKED)
    stream = client.chat.completions.create(model="dummy", stream=True, stream_options={"include_usage": True}, **ASKED)
    chunks = list(stream)

    assert whole.choices[0].message.content == chat
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == chat
    assert counts(chunks[-1].usage) == counts(whole.usage)  # of which some may come from the prefix cache
    assert [model.id for model in client.models.list()] == [whole.model]
    with pytest.raises(openai.BadRequestError, match="temperature is 9"):
        client.completions.create(model="dummy", prompt="a", temperature=9)


def test_hugging_faces_client_chats_with_a_base_url(base: str, chat: str) -> None:
    client = InferenceClient(base_url=base)

    whole = client.chat_completion(**ASKED)
    streamed = [chunk.choices[0].delta.content or "" for chunk in client.chat_completion(stream=True, **ASKED)]

    assert whole.choices[0].message.content == chat == "".join(streamed)


def test_a_stream_at_the_root_comes_token_by_token_and_may_be_left(cluster: Serving, closing: ExitStack) -> None:
    client = closing.enter_context(openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0))
    long: dict[str, Any] = {"model": "m", "prompt": "a", "max_tokens": 200, "temperature": 0}

    for _ in range(20):  # more than there are slots: each must be free again
        with client.completions.create(stream=True, **long) as stream:
            next(iter(stream))

    assert client.completions.create(**long).usage is not None


def test_tritons_client_infers_in_binary_and_in_json_at_the_root_and_at_the_task(
    cluster: Serving, models: dict[str, Path], closing: ExitStack
) -> None:
    expected = pipelines.load(models["text-classification"])(TEXTS, top_k=2)
    address = cluster.url.removeprefix("http://")

    for url in (address, f"{address}/text-classification"):
        client = closing.enter_context(triton.InferenceServerClient(url))
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("text-classification")
        assert client.get_model_metadata("text-classification")["inputs"][0]["name"] == "args"
        for binary in (True, False):
            tensor = triton.InferInput("args", [2, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], object), binary_data=binary)
            wanted = [triton.InferRequestedOutput("output", binary_data=binary)]
            for outputs in (wanted, None):
                result = client.infer(
                    "text-classification", [tensor], outputs=outputs, request_id="7", parameters={"top_k": 2}
                )
                answers = [json.loads(one) for one in result.as_numpy("output").reshape(-1)]
                assert answers == approximately(expected)
                assert result.get_response()["id"] == "7"
        with pytest.raises(InferenceServerException, match="function_to_apply is 'x'"):
            client.infer("text-classification", [tensor], parameters={"function_to_apply": "x"})


def test_tritons_client_asks_questions(cluster: Serving, models: dict[str, Path], closing: ExitStack) -> None:
    client = closing.enter_context(triton.InferenceServerClient(cluster.url.removeprefix("http://")))
    columns = []
    for name in ("question", "context"):
        column = triton.InferInput(name, [1], "BYTES")
        column.set_data_from_numpy(np.array([QUESTION[name].encode()], object))
        columns.append(column)

    (answer,) = client.infer("question-answering", columns).as_numpy("output").reshape(-1)

    assert json.loads(answer) == approximately(pipelines.load(models["question-answering"])(QUESTION))


def test_the_predict_of_text_embeddings_inference_answers_at_the_root_and_at_the_task(
    cluster: Serving, models: dict[str, Path]
) -> None:
    expected = pipelines.load(models["text-classification"])(TEXTS, top_k=None)

    for url in (f"{cluster.url}/predict", f"{cluster.url}/text-classification/predict"):
        assert httpx.post(url, json={"inputs": TEXTS[0]}).json() == approximately(expected[0])
        assert httpx.post(url, json={"inputs": [[one] for one in TEXTS]}).json() == approximately(expected)


def test_no_alias_at_the_root_needs_the_gateway(cluster: Serving) -> None:
    """A Python process on the way would cost every request and every token a hop."""
    gateway = cluster.replica("gateway")
    gateway.suspend()
    try:
        chat = httpx.post(f"{cluster.url}/v1/chat/completions", json={"model": "m", **ASKED}, timeout=20)
        metadata = httpx.get(f"{cluster.url}/v2/models/translation", timeout=20)
        predicted = httpx.post(f"{cluster.url}/predict", json={"inputs": TEXTS[0]}, timeout=20)
        named = httpx.post(f"{cluster.url}/models/text-classification", json={"inputs": TEXTS[0]}, timeout=20)
    finally:
        gateway.resume()

    assert {one.status_code for one in (chat, metadata, predicted, named)} == {200}


def test_a_model_is_reached_by_its_own_name_too(cluster: Serving, models: dict[str, Path]) -> None:
    name = pipelines.load(models["text-classification"]).artifact.manifest.source.name

    by_name = InferenceClient(model=f"{cluster.url}/models/{name}").text_classification(TEXTS[0])
    large = httpx.post(
        f"{cluster.url}/models/{name}", json={"inputs": ["a" * 9_000_000]}, timeout=60, follow_redirects=True
    )

    assert len(by_name) == 3
    assert (large.status_code, large.history[0].status_code) == (413, 308)  # the task's own limit
    unknown = httpx.post(f"{cluster.url}/models/nobody/knows", json={"inputs": "a"})
    assert (unknown.status_code, "there is no model 'nobody/knows'" in unknown.json()["error"]) == (404, True)


@pytest.mark.parametrize("path", ["/v1/nowhere", "/v1/models/nobody"])
def test_errors_at_the_root_have_the_shape_that_its_clients_read(cluster: Serving, path: str) -> None:
    response = httpx.get(f"{cluster.url}{path}")

    assert (response.status_code, response.json()["error"]["type"]) == (404, "invalid_request_error")
    assert len(response.headers.get_list("x-total-time")) == 1
