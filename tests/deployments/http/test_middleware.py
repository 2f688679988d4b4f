"""The middleware around Serve's HTTP servers: what it hides from Serve, and the deadline that it keeps."""

import asyncio
import json
import time
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments.http import middleware
from deployments.http.middleware import RenameDeadline
from deployments.http.request import DEADLINE_HEADER as PUBLIC
from deployments.http.request import HIDDEN_DEADLINE_HEADER as PRIVATE
from deployments.http.request import START_HEADER, clock


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """What the header became, as a body in two parts."""
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(0.05)
    await send({"type": "http.response.body", "body": json.dumps(headers).encode()})


async def wait(scope: Scope, receive: Receive, send: Send) -> None:
    """As Serve's proxy without a replica: it waits, and answers in its own words when it is cancelled."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"cancelled"})


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    raise TimeoutError("its own")


def messages_of(app: Any, headers: dict[str, str]) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(RenameDeadline(app)(scope, receive, send))
    return sent


def ask(app: Any, headers: dict[str, str]) -> tuple[int, bytes]:
    start, *bodies = messages_of(app, headers)
    return start["status"], b"".join(one["body"] for one in bodies)


def test_the_head_of_an_answer_is_not_sent_before_there_is_a_body() -> None:
    """A replica that dies in between has said nothing: another one can be asked."""

    async def die(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert messages_of(die, {}) == []


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "GRACE_S", 0.0)


def test_the_deadline_has_another_name_inside_that_nobody_can_send_from_outside() -> None:
    assert ask(answer, {PUBLIC: "5", PRIVATE: "9"}) == (200, json.dumps({PRIVATE: "5"}).encode())


@pytest.mark.parametrize("given", ["soon", "nan", "-1", "0", "1e300"])
def test_a_deadline_that_is_none_is_left_to_the_replica(given: str) -> None:
    assert ask(answer, {PUBLIC: given}) == (200, json.dumps({PRIVATE: given}).encode())


def test_a_request_that_no_replica_takes_in_time_gets_408_in_json_and_nothing_else() -> None:
    status, body = ask(wait, {PUBLIC: "0.01"})
    assert (status, json.loads(body)["error_type"]) == (408, "timeout")


@pytest.mark.parametrize("own", [{}, {"x-request-id": "abc"}], ids=str)
def test_that_answer_has_a_request_id_too(own: dict[str, str]) -> None:
    start, _ = messages_of(wait, {PUBLIC: "0.01", **own})
    request_id = dict(start["headers"])[b"x-request-id"].decode()
    assert request_id == own.get("x-request-id", request_id) != ""


def test_an_answer_that_has_begun_is_not_cut_off() -> None:
    assert ask(answer, {PUBLIC: "0.01"}) == (200, json.dumps({PRIVATE: "0.01"}).encode())


def test_the_time_that_a_request_waited_before_counts() -> None:
    started_at = time.perf_counter()
    stamp = f"{int(1000 * (time.time() - 50))} {clock()}"
    assert ask(wait, {PUBLIC: "50", START_HEADER: stamp})[0] == 408
    assert time.perf_counter() - started_at < 40


def test_a_timeout_of_the_application_is_its_own() -> None:
    with pytest.raises(TimeoutError, match="its own"):
        ask(fail, {PUBLIC: "5"})
