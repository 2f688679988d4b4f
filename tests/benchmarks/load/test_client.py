"""What the client makes of every way in which a server may answer, or not."""

from typing import Any

import pytest

from benchmarks.load.client import CLOSED, STREAM_ERROR, TIMEOUT, UnreachableError
from benchmarks.load.generator import Load, measure
from benchmarks.load.tally import Tally
from tests.benchmarks.loads import CALL, load_on
from tests.benchmarks.local_server import Answer, LocalServer, chunked, response


def answering(answer: bytes) -> Answer:
    async def respond(_body: Any) -> bytes:
        return answer

    return respond


def tally_of(answer: bytes, **settings: Any) -> Tally:
    with LocalServer(answering(answer)) as server:
        return measure(load_on(server, **{"duration_s": 0.2} | settings))


def test_errors_are_counted_by_status_and_have_no_latency() -> None:
    tally = tally_of(response(b"{}", "429 Too Many Requests", "retry-after: 1"))

    assert list(tally.statuses) == ["429"]
    assert tally.statuses["429"] > 0
    assert len(tally.latency) == tally.per_s["requests"] == 0


def test_the_times_in_the_headers_are_read_whatever_their_case() -> None:
    parts = ["X-Queue-Time: 2.5", "x-tokenization-time: 0.5", "X-INFERENCE-TIME: 10", "x-total-time: 14.25"]
    summary = tally_of(response(b"[]", "200 OK", *parts, "x-compute-tokens: 7")).summary()

    assert {part: values["p50"] for part, values in summary["parts_ms"].items()} == pytest.approx(
        {"queue": 2.5, "tokenization": 0.5, "inference": 10, "total": 14.25}, rel=2e-3
    )
    assert summary["compute_tokens_per_s"] == pytest.approx(7 * summary["requests_per_s"])


def test_each_event_of_a_stream_is_a_token_except_the_last_word() -> None:
    events = [b'data: {"token": {"id": %d}}\n\n' % index for index in range(5)]
    tally = tally_of(chunked(*events, b"data: [DONE]\n\n"))

    assert tally.per_s["streamed_tokens"] == pytest.approx(5 * tally.per_s["requests"])
    assert len(tally.first_token) == tally.statuses["200"]
    assert len(tally.between_tokens) == 4 * tally.statuses["200"]


def test_events_may_be_cut_anywhere() -> None:
    tally = tally_of(chunked(b'data: {"tok', b'en": 1}\n', b'\ndata: {"token": 2}\n\n'))

    assert tally.per_s["streamed_tokens"] == pytest.approx(2 * tally.per_s["requests"])


def test_an_error_in_mid_stream_is_an_error_though_the_status_was_200() -> None:
    tally = tally_of(chunked(b'data: {"token": 1}\n\n', b'data: {"error": "no", "error_type": "internal"}\n\n'))

    assert list(tally.statuses) == [STREAM_ERROR]


def test_a_server_that_does_not_answer_in_time_is_a_timeout() -> None:
    tally = tally_of(b"HTTP/1.1 200 OK\r\n", timeout_s=0.1)

    assert list(tally.statuses) == [TIMEOUT]


def test_a_connection_that_is_closed_without_an_answer_is_an_error() -> None:
    async def hang_up(_body: Any) -> bytes:
        raise ConnectionResetError

    with LocalServer(hang_up) as server:
        tally = measure(load_on(server, duration_s=0.2))

    assert list(tally.statuses) == [CLOSED]


def test_a_server_may_close_the_connection_after_each_answer() -> None:
    tally = tally_of(response(b"{}", "200 OK", "connection: close"))

    assert list(tally.statuses) == ["200"]


def test_no_server_is_one_line() -> None:
    with pytest.raises(UnreachableError, match="nothing answers at http://127.0.0.1:1 "):
        measure(Load("127.0.0.1", 1, [CALL], duration_s=0.1, concurrency=1))
