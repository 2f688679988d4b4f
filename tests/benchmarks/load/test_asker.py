"""The plain client: answers read whole, event by event, or dropped."""

import asyncio
import threading
from http.client import HTTPException
from typing import Any

import pytest

from benchmarks.load.asker import Asker
from tests.benchmarks.local_server import LocalServer, at_once, chunked, response


async def refused(_body: Any) -> bytes:
    return response(b'{"error": "full"}', "429 Too Many Requests")


async def never(_body: Any) -> bytes:
    await asyncio.sleep(60)
    return b""


def test_one_connection_answers_many_requests() -> None:
    with LocalServer(at_once) as server:
        asker = Asker(server.port)
        assert [asker.ask("/", b"{}") for _ in range(3)] == [b"{}"] * 3
        asker.close()


def test_another_status_is_an_error_that_quotes_the_answer_or_is_returned() -> None:
    with LocalServer(refused) as server:
        asker = Asker(server.port)
        with pytest.raises(HTTPException, match='429 {"error": "full"}'):
            asker.ask("/", b"{}")
        with pytest.raises(HTTPException, match="429"):
            next(asker.events("/", b"{}"))
        assert asker.answer("/", b"{}") == (429, b'{"error": "full"}')
        asker.close()


def test_events_come_with_their_data() -> None:
    async def events(_body: Any) -> bytes:
        return chunked(b"data: 1\n\n", b"data: 2\n", b"\ndata: [DONE]\n\n")

    with LocalServer(events) as server:
        asker = Asker(server.port)
        assert list(asker.events("/", b"{}")) == [b"1", b"2", b"[DONE]"]
        asker.close()


def test_an_answer_that_takes_too_long_is_a_timeout_and_the_next_request_has_a_new_connection() -> None:
    waits = iter([60.0, 0.0])

    async def slow_once(_body: Any) -> bytes:
        await asyncio.sleep(next(waits))
        return response(b"[]")

    with LocalServer(slow_once) as server:
        asker = Asker(server.port, timeout_s=0.1)
        with pytest.raises(TimeoutError):
            asker.ask("/", b"{}")
        assert asker.ask("/", b"{}") == b"[]"
        asker.close()


def test_another_thread_may_drop_a_request_that_is_under_way() -> None:
    with LocalServer(never) as server:
        asker = Asker(server.port)
        threading.Timer(0.2, asker.abort).start()
        with pytest.raises((OSError, HTTPException)):
            asker.ask("/", b"{}")
