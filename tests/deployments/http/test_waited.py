"""The time stamp of the ingress: what a request has waited already."""

import time

import pytest

from deployments.http.request import START_HEADER, clock, waited_s


def waited(value: str | None, timeout_s: float = 10.0) -> float:
    headers = [] if value is None else [(START_HEADER.encode(), value.encode())]
    return waited_s({"type": "http", "headers": headers}, timeout_s)


def ago(seconds: float, of: str | None = None) -> str:
    return f"{int(1000 * (time.time() - seconds))} {of or clock()}"


def test_the_wait_is_the_time_since_the_ingress_had_read_the_head() -> None:
    assert waited(ago(3.0)) == pytest.approx(3.0, abs=0.5)


def test_all_of_the_time_may_have_passed_but_no_more() -> None:
    assert waited(ago(3.0), timeout_s=2.0) == 2.0


def test_the_clock_of_another_machine_takes_at_most_half_of_the_time() -> None:
    assert waited(ago(3600.0, of="another")) == 5.0
    assert waited(ago(1.0, of="another")) == pytest.approx(1.0, abs=0.5)


def test_a_stamp_of_the_future_gives_no_time() -> None:
    assert waited(ago(-3600.0)) == 0.0


@pytest.mark.parametrize("value", [None, "", "now", "1764440000000", "-5 x", "1e3 x", "9" * 400 + " x", "1 2 3"])
def test_what_no_ingress_wrote_counts_as_no_wait(value: str | None) -> None:
    assert waited(value) == 0.0


def test_there_is_one_name_for_this_machine_s_clock() -> None:
    assert clock() == clock() != ""
    assert " " not in clock()
