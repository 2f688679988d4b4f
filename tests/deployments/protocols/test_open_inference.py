"""The Open Inference Protocol, and text-embeddings-inference's `/predict`, over ASGI without Ray."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipelines
from deployments.protocols.byte_tensors import ByteTensor, packed
from deployments.task_server import TaskServer
from pipelines.schema import convert
from tests.deployments.asking import asking, post
from tests.deployments.test_task_server import started

TASK = "text-classification"
INFER = f"/v2/models/{TASK}/infer"
TEXTS = ["what a film", "정말 좋았어요 😀"]


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    return exported("bert", TASK)


@pytest.fixture(scope="module")
def server(model: Path) -> TaskServer:
    return started(TASK, model)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[Any]:
    labels = pipelines.load(model)(TEXTS, top_k=None)
    return [
        [{"label": one["label"], "score": pytest.approx(one["score"], abs=1e-5)} for one in of_text]
        for of_text in labels
    ]


def tensor(texts: list[Any], name: str = "args", shape: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(texts)], "datatype": "BYTES", "data": texts, **more}


@pytest.mark.parametrize("path", [INFER, f"/v2/models/{TASK}/versions/1/infer"])
@pytest.mark.parametrize("name", ["args", "text", "text_input", "inputs", "input-0", "array_inputs"])
def test_each_element_is_answered_by_one_json_document(
    server: TaskServer, expected: list[Any], path: str, name: str
) -> None:
    answer = post(server, {"id": "a-1", "inputs": [tensor(TEXTS, name)]}, path).json()
    column = post(server, {"inputs": [tensor([[text] for text in TEXTS], name, [2, 1])]}, path).json()

    assert (answer["model_name"], answer["id"], "id" in column) == (TASK, "a-1", False)
    for one in (answer, column):
        (output,) = one["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("output", "BYTES", [2, 1])
        assert [json.loads(document) for document in output["data"]] == expected


@pytest.mark.parametrize("asks", [{"outputs": [{"name": "output", "parameters": {"binary_data": True}}]}, {}])
def test_binary_data_goes_in_and_comes_out(server: TaskServer, expected: list[Any], asks: dict[str, Any]) -> None:
    data = packed([text.encode() for text in TEXTS])
    described = tensor([], shape=[2, 1], parameters={"binary_data_size": len(data)})
    del described["data"]
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}} | asks).encode()

    response = post(server, head + data, INFER, inference_header_content_length=str(len(head)))

    length = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    tail = response.content[length:]
    assert len(tail) == output["parameters"]["binary_data_size"]
    documents, _ = convert(output, ByteTensor).read(memoryview(tail), ("output",))
    assert [json.loads(text) for text in documents] == expected


def test_the_name_that_kserves_client_repeats_is_that_of_the_path(server: TaskServer, expected: list[Any]) -> None:
    """Captured from kserve 0.21.0, InferenceRESTClient; tests/deployments/grpc/test_kserve.py runs it."""
    sent = {"id": "7", "model_name": TASK, "inputs": [tensor(TEXTS, parameters={})]}
    answer = post(server, sent, INFER).json()
    other = post(server, sent | {"model_name": "large"}, INFER)

    assert [json.loads(document) for document in answer["outputs"][0]["data"]] == expected
    assert other.status_code == 400
    assert other.json()["error"] == f"model_name is 'large'; allowed: {TASK}, as in the path"


def test_the_parameters_are_the_tasks_own(server: TaskServer) -> None:
    answer = post(server, {"inputs": [tensor(TEXTS)], "parameters": {"top_k": 1}}, INFER).json()
    refused = post(server, {"inputs": [tensor(TEXTS)], "parameters": {"x": 1}}, INFER)

    assert [len(json.loads(document)) for document in answer["outputs"][0]["data"]] == [1, 1]
    assert (refused.status_code, "['x']" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs is missing; allowed: a list of at most 16, each an object with name and shape"),
        ({"inputs": [3]}, "inputs[0] is 3; allowed: an object"),
        ({"inputs": [tensor(TEXTS, shape=[3])]}, "inputs[0] has 2 elements; allowed: 3, as its shape says"),
        ({"inputs": [tensor(TEXTS, shape=[1, 2])]}, "inputs[0].shape is [1, 2]; allowed: [n] or [n, 1]"),
        ({"inputs": [tensor(TEXTS, datatype="FP32")]}, "inputs[0].datatype is 'FP32'; allowed: BYTES"),
        ({"inputs": [tensor(TEXTS, "question")]}, "inputs are named ['question']; allowed: one of args"),
        ({"inputs": [tensor(TEXTS), tensor(TEXTS)]}, "inputs are named ['args', 'args']"),
        ({"inputs": [tensor(["a", 3])]}, "inputs[0].data[1] is 3; allowed: a string"),
        ({"inputs": [tensor(["a", ""])]}, "args[1] is empty"),
        ({"inputs": [tensor([], shape=[0])]}, "args is empty"),
        ({"inputs": [tensor(["a" * 200_001])]}, "args[0] has 200001 characters"),
        ({"inputs": [tensor(["a"])], "outputs": [{"name": "x"}]}, "outputs[0].name is 'x'; allowed: output"),
        ({"inputs": [tensor(["a"])], "id": 3}, "id is 3; allowed: a string"),
        ({"inputs": [tensor(["a"], parameters={"binary_data_size": 5})]}, "data and binary_data_size"),
        ({"inputs": [tensor(["a"])] * 1, "surprise": 1}, "the body has no key 'surprise'; allowed: id, inputs"),
    ],
)
def test_a_wrong_request_is_told_where(server: TaskServer, body: Any, message: str) -> None:
    response = post(server, body, INFER)

    assert response.status_code in (400, 422)
    assert message in response.json()["error"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=24) | st.lists(st.binary(max_size=4), max_size=2).map(packed),
    size=st.integers(-1, 30) | st.none() | st.text(max_size=2),
    header=st.integers(-2, 12) | st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=3),
    count=st.integers(0, 3),
)
def test_bytes_that_are_no_tensor_are_always_a_4xx(
    server: TaskServer, data: bytes, size: Any, header: Any, count: int
) -> None:
    size = len(data) if size is None else size
    described = {"name": "args", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [described]}).encode()
    length = str(len(head) + header) if isinstance(header, int) else header

    response = post(server, head + data, INFER, inference_header_content_length=length)

    assert response.status_code in (200, 400), response.text


@given(texts=st.lists(st.text()))
def test_what_is_packed_is_read_again(texts: list[str]) -> None:
    data = packed([text.encode() for text in texts])
    described = {"name": "a", "shape": [len(texts)], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}

    read, rest = convert(described, ByteTensor).read(memoryview(data + b"rest"), ("a",))

    assert (read, bytes(rest)) == (texts, b"rest")


def test_a_length_that_lies_is_refused_before_anything_is_reserved(server: TaskServer) -> None:
    data = struct.pack("<I", 2**32 - 1) + b"a"
    described = {"name": "args", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [described]}).encode()

    response = post(server, head + data, INFER, inference_header_content_length=str(len(head)))

    assert (response.status_code, "ends inside an element" in response.json()["error"]) == (400, True)


def test_questions_and_contexts_are_two_tensors(exported: Callable[..., Path]) -> None:
    server = started("question-answering", exported("bert", "question-answering"))
    context = "Anna went to Paris."
    path = "/v2/models/question-answering/infer"

    body = {"inputs": [tensor([context] * 2, "context"), tensor(["Who?", "Where?"], "question")]}
    answer = post(server, body, path).json()
    lacking = post(server, {"inputs": [tensor([context], "context")]}, path)

    native = post(server, {"inputs": [{"question": one, "context": context} for one in ("Who?", "Where?")]}).json()
    assert [json.loads(document) for document in answer["outputs"][0]["data"]] == native
    assert "allowed: question and context" in lacking.json()["error"]


def test_the_model_and_its_health_are_described(server: TaskServer) -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        paths = ("", "/health/live", "/health/ready", f"/models/{TASK}", f"/models/{TASK}/ready", "/models/other")
        return [await client.get(f"/{TASK}/v2{path}") for path in paths]

    *described, unknown = asking(server, ask)

    assert {one.status_code for one in described} == {200}
    assert described[3].json()["inputs"] == [{"name": "args", "datatype": "BYTES", "shape": [-1, 1]}]
    assert unknown.status_code == 404


def test_predict_answers_as_text_embeddings_inference_does(server: TaskServer, expected: list[Any]) -> None:
    def predict(inputs: Any, **options: Any) -> Any:
        return post(server, {"inputs": inputs, **options}, "/predict").json()

    assert predict(TEXTS[0]) == expected[0]
    assert predict([[text] for text in TEXTS]) == expected
    pair = post(server, {"inputs": {"text": TEXTS[0], "text_pair": TEXTS[1]}}).json()
    assert predict(TEXTS) == pair[0]
    assert predict([TEXTS]) == pair
    raw = post(server, {"inputs": TEXTS[0], "parameters": {"function_to_apply": "none"}}).json()
    assert predict(TEXTS[0], raw_scores=True) == raw[0]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"inputs": "long " * 200}, 422, "truncate: true"),
        ({"inputs": "long " * 200, "truncate": True}, 200, "label"),
        ({"inputs": []}, 400, "inputs is []"),
        ({"inputs": ["a", "b", "c"]}, 400, "allowed: a text, a pair of texts"),
        ({"inputs": [["a"], "b"]}, 400, "allowed: a text, a pair of texts"),
        ({"inputs": "a", "truncate": 1}, 400, "truncate is 1; allowed: true or false"),
        ({"inputs": "a", "truncation_direction": "left"}, 400, "truncation_direction is 'left'; allowed: right"),
        ({"inputs": "a", "x": 1}, 400, "the body has no key 'x'; allowed: inputs"),
    ],
)
def test_predict_refuses_what_it_cannot_do(server: TaskServer, body: Any, status: int, message: str) -> None:
    response = post(server, body, "/predict")

    assert (response.status_code, message in response.text) == (status, True)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, "inputs[0] has 2 elements or more; allowed: 1, as its shape says"),
        (400_000, "inputs[0].shape[0] is 400000; allowed: at most 65536"),
    ],
)
def test_no_more_elements_are_unpacked_than_the_shape_says_and_a_request_may_have(
    server: TaskServer, count: int, message: str
) -> None:
    data = packed([b"a"] * 400_000)
    described = {"name": "args", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [described]}).encode()
    response = post(server, head + data, INFER, inference_header_content_length=str(len(head)))

    assert (response.status_code, response.json()["error"]) == (400, message)
