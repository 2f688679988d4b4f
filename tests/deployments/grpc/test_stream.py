"""ModelStreamInfer through HAProxy: several requests on one stream of tritonclient.grpc, answered as they are ready."""

import queue
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

import pipelines
from deployments.http import receiving
from tests.deployments.grpc.served import Served, served, tensor
from tests.deployments.grpc.test_infer import TEXTS, approximately, documents, wait_until

TASK, ENCODER = "text-generation", "text-classification"
MIB = 2**20
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def models(exported: Callable[..., Path]) -> dict[str, Path]:
    return {TASK: exported("qwen2", TASK), ENCODER: exported("bert", ENCODER)}


@pytest.fixture(scope="module")
def cluster(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("grpc"), models, threads=1) as running:
        yield running


class Stream:
    """A stream of the client's; `next` is the next answer."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self.client = client
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self._answers.put((result, error)))

    def ask(self, name: str, texts: list[str], **options: Any) -> None:
        self.client.async_stream_infer(name, [tensor(texts)], **options)

    def next(self) -> tuple[Any, Any]:
        return self._answers.get(timeout=60)

    def whole(self) -> list[Any]:
        """The answers to one request, up to the one that says that it is the last."""
        found: list[Any] = []
        while not found or not found[-1].get_response().parameters["triton_final_response"].bool_param:
            result, error = self.next()
            assert error is None, error
            found.append(result)
        return found


@contextmanager
def streaming(cluster: Served) -> Iterator[Stream]:
    with triton.InferenceServerClient(cluster.address) as client:
        stream = Stream(client)
        yield stream
        client.stop_stream()


def test_a_generator_answers_token_by_token(cluster: Served, models: dict[str, Path]) -> None:
    expected = pipelines.load(models[TASK])("Once", return_full_text=False, **GREEDY)[0]["generated_text"]

    with streaming(cluster) as stream:
        stream.ask(TASK, ["Once"], request_id="a", parameters={"return_full_text": False, **GREEDY})
        answers = stream.whole()

    events = [documents(one)[0] for one in answers]
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert "".join(event["token"]["text"] for event in events) == expected == events[-1]["generated_text"]
    assert {one.get_response().id for one in answers} == {"a"}
    assert [event["generated_text"] is None for event in events] == [True] * (len(events) - 1) + [False]


def test_the_last_answer_may_be_an_empty_one(cluster: Served) -> None:
    with streaming(cluster) as stream:
        stream.ask(TASK, ["Once"], request_id="a", parameters=GREEDY, enable_empty_final_response=True)
        *events, last = stream.whole()

    assert documents(events[-1])[0]["generated_text"] is not None
    assert (list(last.get_response().outputs), last.get_response().id) == ([], "a")


def test_requests_of_one_stream_are_answered_at_once_each_under_its_id(cluster: Served) -> None:
    long = GREEDY | {"max_new_tokens": 200, "min_new_tokens": 200}
    with streaming(cluster) as stream:
        for name, parameters in (("long", long), ("b", GREEDY), ("c", GREEDY)):
            stream.ask(TASK, ["Once upon"], request_id=name, parameters=parameters)
        found: dict[str, list[Any]] = {"long": [], "b": [], "c": []}
        ended: list[str] = []
        while len(ended) < 3:
            result, error = stream.next()
            assert error is None, error
            name = result.get_response().id
            found[name] += documents(result)
            if found[name][-1]["generated_text"] is not None:
                ended.append(name)

    texts = {found[name][-1]["generated_text"] for name in ("b", "c")}
    assert len(texts) == 1
    assert len(found["long"]) == 200
    assert ended[-1] == "long", "the others wait for it"


def test_an_encoder_answers_a_list_with_one_message(cluster: Served, models: dict[str, Path]) -> None:
    with streaming(cluster) as stream:
        stream.ask(ENCODER, TEXTS, parameters={"top_k": 1})
        (answer,) = stream.whole()

    assert documents(answer) == approximately(pipelines.load(models[ENCODER])(TEXTS, top_k=1))


def test_an_error_of_one_request_leaves_the_others(cluster: Served) -> None:
    with grpc.insecure_channel(cluster.address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        answers = list(call(iter([message("bad", top_k=-1), message("good"), message("two", texts=["a", "b"])])))

    told = {one.infer_response.id: one.error_message for one in answers}
    assert told["bad"].startswith("parameters.top_k is -1")
    assert told["two"] == "args has 2 elements; allowed in a stream: 1"
    assert told["good"] == ""
    assert any(one.infer_response.parameters["triton_final_response"].bool_param for one in answers)


def test_a_stream_of_no_model_says_which_there_are(cluster: Served) -> None:
    error = refused(cluster, [service_pb2.ModelInferRequest(model_name="nobody-of-this-name-is-here")])

    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert "allowed: text-classification, text-generation" in error.details()


def test_a_message_above_the_limit_ends_the_stream_before_it_is_kept(models: dict[str, Path], tmp_path: Path) -> None:
    bounded = {ENCODER: models[ENCODER]}
    with served(tmp_path, bounded, threads=1, limits={"max_body_bytes": 1000}) as running:
        error = refused(running, [message("a", model=ENCODER), message("b", model=ENCODER, texts=["x" * 2000])])

    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "bytes; allowed: at most 1000 bytes" in error.details()


def test_more_requests_than_a_stream_may_have_inside_are_all_answered(
    cluster: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.protocols.open_inference_grpc.stream.MAX_INSIDE", 2)
    with grpc.insecure_channel(cluster.address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        answers = list(call(iter([message(str(n), model=ENCODER) for n in range(50)])))

    assert sorted(int(one.infer_response.id) for one in answers) == list(range(50))
    assert {one.error_message for one in answers} == {""}


def leave(cluster: Served, requests: int) -> None:
    """Cancel a stream of so many after its first answer; returns once none of them is inside."""
    server = cluster.replicas[TASK].handler
    with grpc.insecure_channel(cluster.address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        answers = call(iter([message(str(n), max_new_tokens=200) for n in range(requests)]))
        next(iter(answers))
        answers.cancel()
        wait_until(lambda: server._serving.inside == 0)


def test_a_client_that_leaves_while_requests_wait_frees_the_model(
    cluster: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.protocols.open_inference_grpc.stream.MAX_INSIDE", 1)
    leave(cluster, requests=8)


def test_a_client_that_leaves_frees_its_slots(cluster: Served) -> None:
    leave(cluster, requests=12)

    cache = cluster.replicas[TASK].handler._serving.scheduler.cache
    wait_until(lambda: cache.taken_slots == 0)


def test_a_replica_that_ends_answers_what_is_inside_and_ends_its_streams(
    models: dict[str, Path], tmp_path: Path
) -> None:
    with (
        served(tmp_path, {TASK: models[TASK]}, threads=1) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        sent: queue.Queue[Any] = queue.Queue()
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        answers = call(iter(sent.get, None))
        sent.put(message("a", max_new_tokens=64))
        found = [next(answers)]
        replica = running.replicas[TASK]
        replica.call(lambda: replica.handler.end_within(60.0))
        with pytest.raises(grpc.RpcError) as raised:
            found += list(iter(answers.__next__, None))
        sent.put(None)

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "open the stream again" in raised.value.details()


def refused(cluster: Served, requests: list[Any]) -> Any:
    """The error that ends a stream of these."""
    with grpc.insecure_channel(cluster.address) as channel:
        answers = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests))
        with pytest.raises(grpc.RpcError) as raised:
            list(answers)
        return raised.value


def message(request_id: str, model: str = TASK, texts: list[str] | None = None, **parameters: Any) -> Any:
    """One request of a stream."""
    texts = texts or ["Once"]
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name="args", datatype="BYTES", shape=[len(texts)])
    encoded = [text.encode() for text in texts]
    request.raw_input_contents.append(b"".join(len(one).to_bytes(4, "little") + one for one in encoded))
    parameters = (GREEDY if model == TASK else {}) | parameters
    for name, value in parameters.items():
        if isinstance(value, bool):
            request.parameters[name].bool_param = value
        else:
            request.parameters[name].int64_param = value
    return request


def test_streams_whose_messages_stall_are_ended_before_they_fill_the_memory(
    cluster: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked at the replica: each has sent a megabyte of two, and what comes is still answered."""
    monkeypatch.setattr(receiving, "MOST_BYTES", 3 * MIB)
    monkeypatch.setattr(receiving, "MOST_BODIES", 0)
    part = struct.pack(">BI", 0, 2 * MIB) + bytes(MIB)
    head = f"POST /{ENCODER}/grpc/ModelStreamInfer HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n"
    head += "transfer-encoding: chunked\r\nx-request-disconnect-disabled: ?1\r\n\r\n"
    with ExitStack() as stack, streaming(cluster) as stream:
        stalled = []
        for _ in range(6):
            opened = socket.create_connection(("127.0.0.1", cluster.replicas[ENCODER].port), timeout=60)
            stalled.append(stack.enter_context(opened))
            opened.sendall(head.encode() + b"%x\r\n%b\r\n" % (len(part), part))
        ended = [b""] * len(stalled)
        while sum(b"grpc-status: 8" in one for one in ended) < 4:
            readable = select.select(stalled, [], [], 60)[0]
            assert readable
            for one in readable:
                ended[stalled.index(one)] += one.recv(65536)
        stream.ask(ENCODER, ["a film"])
        assert len(stream.whole()) == 1
