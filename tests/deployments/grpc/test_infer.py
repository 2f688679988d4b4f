"""ModelInfer through HAProxy, as the unmodified tritonclient.grpc asks it."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

import pipelines
from deployments.cluster.ray_environment import spare_port
from deployments.ingress.config import IngressConfig
from tests.deployments.grpc.served import Served, served, tensor

TASK, QA = "text-classification", "question-answering"
TEXTS = ["what a film", "정말 좋았어요 😀"]
Client = Any


@pytest.fixture(scope="module")
def models(exported: Callable[..., Path]) -> dict[str, Path]:
    return {TASK: exported("bert", TASK), QA: exported("distilbert", QA), f"{TASK}.large": exported("bert", TASK)}


@pytest.fixture(scope="module")
def cluster(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("grpc"), models, threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(cluster: Served) -> Iterator[Client]:
    with triton.InferenceServerClient(cluster.address) as client:
        yield client


def documents(result: Any) -> list[Any]:
    return [json.loads(one) for one in result.as_numpy("output").reshape(-1)]


def approximately(expected: Any) -> Any:
    if isinstance(expected, list):
        return [approximately(one) for one in expected]
    if isinstance(expected, dict):
        return {key: approximately(value) for key, value in expected.items()}
    return pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected


@pytest.mark.parametrize("column", [True, False])
def test_a_list_is_answered_in_its_order(client: Client, models: dict[str, Path], column: bool) -> None:
    expected = pipelines.load(models[TASK])(TEXTS, top_k=2)

    result = client.infer(TASK, [tensor(TEXTS, column=column)], request_id="7", parameters={"top_k": 2})

    assert documents(result) == approximately(expected)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("7", TASK, "1")
    assert (list(response.outputs[0].shape), response.outputs[0].datatype) == ([2, 1], "BYTES")


def test_texts_may_come_as_contents_and_go_as_contents(cluster: Served, models: dict[str, Path]) -> None:
    request = service_pb2.ModelInferRequest(model_name=TASK)
    one = request.inputs.add(name="text", datatype="BYTES", shape=[2])
    one.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    request.parameters["top_k"].int64_param = 1

    with grpc.insecure_channel(cluster.address) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)

    found = [json.loads(one) for one in response.outputs[0].contents.bytes_contents]
    assert found == approximately(pipelines.load(models[TASK])(TEXTS, top_k=1))
    assert not response.raw_output_contents


def test_an_input_of_two_fields_has_two_tensors(client: Client, models: dict[str, Path]) -> None:
    asked = {"question": "Where is it?", "context": "It is in Busan. It was in Seoul."}

    result = client.infer(QA, [tensor([text], name) for name, text in asked.items()])

    assert documents(result) == approximately([pipelines.load(models[QA])(asked)])


def test_a_body_above_the_buffer_of_haproxy_passes(client: Client) -> None:
    texts = ["a film " * 50] * 400  # 140 KB

    assert len(documents(client.infer(TASK, [tensor(texts)], parameters={"top_k": 1}))) == 400


def test_a_list_as_parameter_comes_as_json(cluster: Served, exported: Callable[..., Path], tmp_path: Path) -> None:
    task = "token-classification"
    with (
        served(tmp_path, {task: exported("bert", task)}, threads=1) as running,
        triton.InferenceServerClient(running.address) as client,
    ):
        model = pipelines.load(exported("bert", task))
        labels = sorted({one["entity"] for one in model(TEXTS[0], ignore_labels=[])})

        result = client.infer(task, [tensor(TEXTS[:1])], parameters={"ignore_labels": json.dumps(labels)})
        with pytest.raises(InferenceServerException, match=r"parameters\.ignore_labels is no JSON"):
            client.infer(task, [tensor(TEXTS[:1])], parameters={"ignore_labels": "[1"})

    assert documents(result) == [[]]


def test_a_number_as_parameter_may_come_as_text(client: Client, models: dict[str, Path]) -> None:
    """Not every client's messages have a place for each kind of number."""
    found = documents(client.infer(TASK, [tensor(TEXTS)], parameters={"top_k": "1"}))

    assert found == approximately(pipelines.load(models[TASK])(TEXTS, top_k=1))
    for wrong in ("1.5", "nan", "x", "1e400", ""):
        with pytest.raises(InferenceServerException, match=f"parameters.top_k is '{wrong}'"):
            client.infer(TASK, [tensor(TEXTS)], parameters={"top_k": wrong})


def test_another_model_of_a_task_is_chosen_by_its_name_or_by_metadata(client: Client) -> None:
    for name, headers in (("large", {}), (TASK, {"x-model": "large"})):
        result = client.infer(name, [tensor(TEXTS)], headers=headers)
        assert result.get_response().model_name == "large"
    with pytest.raises(InferenceServerException, match=f"no model of this name; allowed: {TASK} large"):
        client.infer(TASK, [tensor(TEXTS)], headers={"x-model": "larger"})


def test_shares_of_the_traffic_hold_here_too(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "shares").write_text(f"{TASK} large 25\n", encoding="ascii")
    (tmp_path / "node").mkdir()
    config = IngressConfig(grpc_port=spare_port(), traffic=str(tmp_path / "shares"))
    two = {name: models[name] for name in (TASK, f"{TASK}.large")}
    with (
        served(tmp_path / "node", two, config, threads=1) as cluster,
        triton.InferenceServerClient(cluster.address) as client,
    ):
        answered = Counter(client.infer(TASK, [tensor(TEXTS)]).get_response().model_name for _ in range(40))
        chosen = {
            client.infer(TASK, [tensor(TEXTS)], headers={"x-model": TASK}).get_response().model_name for _ in range(8)
        }

    assert answered == {TASK: 30, "large": 10}
    assert chosen == {TASK}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"model_name": "nobody"}, "NOT_FOUND", f"there is no model nobody; allowed: {TASK}, {QA}, large"),
        ({"model_name": 'ü"%\n'}, "NOT_FOUND", 'there is no model ü"%\n; allowed: '),
        ({"model_version": "2"}, "NOT_FOUND", f"{TASK} has no version '2'; allowed: 1"),
        ({"parameters": {"top_kk": 1}}, "INVALID_ARGUMENT", "not used by the model: ['top_kk']"),
        ({"parameters": {"top_k": 0}}, "INVALID_ARGUMENT", "parameters.top_k is 0"),
        ({"parameters": {"top_k": "x"}}, "INVALID_ARGUMENT", "parameters.top_k is 'x'"),
        ({"inputs": [tensor([b"\xff"])]}, "INVALID_ARGUMENT", "inputs[0][0] is not UTF-8"),
        ({"inputs": [tensor(TEXTS, "x")]}, "INVALID_ARGUMENT", "inputs are named ['x']; allowed: one of args"),
        ({"inputs": []}, "INVALID_ARGUMENT", "inputs is "),
        ({"inputs": [tensor(["a" * 200_001])]}, "INVALID_ARGUMENT", "args[0] has 200001 characters"),
        ({"inputs": [tensor(["a"] * 1025)]}, "INVALID_ARGUMENT", "args has 1025 elements; allowed: at most 1024"),
        ({"outputs": [triton.InferRequestedOutput("x")]}, "INVALID_ARGUMENT", "outputs[0].name is 'x'"),
    ],
)
def test_a_wrong_request_is_told_where(client: Client, change: dict[str, Any], code: str, message: str) -> None:
    given = {"model_name": TASK, "inputs": [tensor(TEXTS)], **change}

    with pytest.raises(InferenceServerException) as raised:
        client.infer(**given)

    assert raised.value.status() == f"StatusCode.{code}"
    assert message in raised.value.message()


def test_what_is_no_message_and_no_call_is_refused(cluster: Served) -> None:
    def call(method: str, data: bytes, **options: Any) -> grpc.RpcError:
        with grpc.insecure_channel(cluster.address) as channel, pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(method)(data, timeout=20, **options)
        error: grpc.RpcError = raised.value
        return error

    infer = "/inference.GRPCInferenceService/ModelInfer"
    named = service_pb2.ModelInferRequest(model_name=TASK).SerializeToString()
    for method, data, code, message in (
        ("/grpc.health.v1.Health/Check", b"", grpc.StatusCode.UNIMPLEMENTED, "no call of inference"),
        (infer, b"", grpc.StatusCode.NOT_FOUND, "there is no model "),
        (infer, named + b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "is no ModelInferRequest"),
    ):
        error = call(method, data)
        assert (error.code(), message in error.details()) == (code, True), error
    error = call(infer, named, compression=grpc.Compression.Gzip)
    assert (error.code(), "grpc-encoding identity" in error.details()) == (grpc.StatusCode.UNIMPLEMENTED, True)


def test_a_deadline_that_ends_is_told_as_one(cluster: Served) -> None:
    """The client's own timer is off: what comes is the replica's answer."""
    with grpc.insecure_channel(cluster.address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        request = service_pb2.ModelInferRequest(model_name=TASK)
        tensors = request.inputs.add(name="args", datatype="BYTES", shape=[1000])
        tensors.contents.bytes_contents.extend([b"a film that takes its time " * 20] * 1000)
        for seconds in ("0.001", "0.05"):
            with pytest.raises(grpc.RpcError) as raised:
                call(request, metadata=(("x-request-timeout-seconds", seconds),))
            assert raised.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        with pytest.raises(grpc.RpcError) as raised:
            call(request, timeout=0.05)  # grpc-timeout
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_call_that_is_cancelled_leaves_the_replica(cluster: Served) -> None:
    server = cluster.replicas[TASK].handler
    with grpc.insecure_channel(cluster.address) as channel:
        request = service_pb2.ModelInferRequest(model_name=TASK)
        tensors = request.inputs.add(name="args", datatype="BYTES", shape=[1000])
        tensors.contents.bytes_contents.extend([b"a film that takes its time " * 20] * 1000)
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(request)
        wait_until(lambda: server._serving.inside > 0)
        call.cancel()
        wait_until(lambda: server._serving.inside == 0)
    wait_until(lambda: server._serving.scheduler.waiting_rows == 0)


def test_calls_at_once_are_all_answered(client: Client) -> None:
    failed: list[Exception] = []

    def ask() -> None:
        try:
            for _ in range(20):
                assert len(documents(client.infer(TASK, [tensor(TEXTS)]))) == 2
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def wait_until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    give_up_at = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
