"""A cluster that is asked as bulk: what is refused for a while is asked again, what is refused for good is left out."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from batch.local_model import Refused
from batch.served_model import BusyError, Client, ServedModel
from deployments.ask import AskError
from tests.local_server import LocalServer

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Ingress(LocalServer):
    """Answers as `answer` says; `asked` has the bodies, `headers` those of the last request."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked, self.headers, self.paths = answer, [], {}, set()  # type: ignore[var-annotated]
        self.lock = threading.Lock()
        super().__init__(_Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        ingress: Any = self.server.service  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with ingress.lock:
            ingress.asked.append(body)
            ingress.headers = dict(self.headers.items())
            ingress.paths.add(self.path)
            status, answer = ingress.answer(body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        if status == 429:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """A test's output is not the place for an access log."""


def client(ingress: Ingress, task: str = "text-classification", **changes: Any) -> Client:
    given = {"task": task, "url": ingress.url, "model": None, "key": None, "parameters": {"top_k": 1}, **changes}
    return ServedModel(**given).open()


def echo(body: dict[str, Any]) -> tuple[int, Any]:
    return 200, [f"answer to {one}" for one in body["inputs"]]


def test_inputs_go_in_lists_as_bulk_and_answers_keep_their_order() -> None:
    inputs = [f"text {number}" for number in range(200)]
    with Ingress(echo) as ingress:
        answers = client(ingress, key="secret", model="large").answers(inputs)
    assert answers == [f"answer to {one}" for one in inputs]
    assert sorted(len(body["inputs"]) for body in ingress.asked) == [8, 64, 64, 64]
    assert all(body["parameters"] == {"top_k": 1} for body in ingress.asked)
    assert ingress.paths == {"/text-classification/large"}
    assert {name.lower(): value for name, value in ingress.headers.items()}.items() >= {
        ("priority", "u=7"),
        ("authorization", "Bearer secret"),
    }


def test_a_busy_cluster_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.served_model.PAUSE_S", 0.01)
    refusals = iter([429, 503, 504])

    def busy(body: dict[str, Any]) -> tuple[int, Any]:
        status = next(refusals, 200)
        return (status, {"error": "busy"}) if status != 200 else echo(body)

    with Ingress(busy) as ingress:
        assert client(ingress).answers(["one"]) == ["answer to one"]
    assert len(ingress.asked) == 4


def test_a_cluster_that_answers_nothing_for_long_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.served_model.PAUSE_S", 0.01)
    monkeypatch.setattr("batch.served_model.PATIENCE_S", 0.0)
    says = "has answered nothing for 0 s: no replica"
    with Ingress(lambda body: (503, {"error": "no replica"})) as ingress, pytest.raises(BusyError, match=says):
        client(ingress).answers(["one"])
    with pytest.raises(BusyError, match="refused"):
        client(ingress).answers(["one"])


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_an_input_that_is_refused_is_found_among_the_others(status: int) -> None:
    def strict(body: dict[str, Any]) -> tuple[int, Any]:
        return (status, {"error": "inputs[3] is bad"}) if "bad" in body["inputs"] else echo(body)

    inputs = [f"text {number}" for number in range(20)]
    inputs[13] = "bad"
    with Ingress(strict) as ingress:
        answers = client(ingress).answers(inputs)
    assert answers.pop(13) == Refused("inputs[3] is bad")
    assert answers == [f"answer to {one}" for one in inputs if one != "bad"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_input_can_change_ends_the_run(status: int) -> None:
    says = f"answered {status}: not you"
    with (
        Ingress(lambda body: (status, {"error": {"message": "not you"}})) as ingress,
        pytest.raises(AskError, match=says),
    ):
        client(ingress).answers(["one"])


def test_lists_are_bounded_by_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.served_model.CHARACTERS", 10)
    questions = [{"question": "1234", "context": "5678"} for _ in range(3)]
    with Ingress(lambda body: (200, [{} for _ in body["inputs"]])) as ingress:
        assert client(ingress, "question-answering").answers(questions) == [{}, {}, {}]
    assert [len(body["inputs"]) for body in ingress.asked] == [1, 1, 1]
