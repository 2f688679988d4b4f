"""What counts as an answer while something fails, and for how long there was none."""

import pytest

from benchmarks.faults.ledger import WRONG_ANSWER, Entry, Ledger
from benchmarks.faults.readiness import Readiness
from benchmarks.load.client import CLOSED, REFUSED, Exchange
from benchmarks.suites.faults import longest_s


def entry(outcome: str, ended_at: float, sent_at: float | None = None) -> Entry:
    return Entry("0", ended_at - 0.01 if sent_at is None else sent_at, ended_at, outcome)


def exchange(status: str, request_id: str | None) -> Exchange:
    return Exchange(b"", 0.0, lambda _: None, status=status, request_id=request_id)


@pytest.mark.parametrize("outcome", ["200", "408", "429", "503"])
def test_an_answer_is_what_a_client_can_act_on(outcome: str) -> None:
    assert not entry(outcome, 1.0).is_lost


@pytest.mark.parametrize("outcome", [CLOSED, REFUSED, "404", "500", "502", "504", WRONG_ANSWER])
def test_anything_else_is_a_lost_request(outcome: str) -> None:
    assert entry(outcome, 1.0).is_lost


def test_the_answer_to_another_request_is_none() -> None:
    assert Entry.of("7", exchange("200", "7")).outcome == "200"
    assert Entry.of("7", exchange("200", "8")).outcome == WRONG_ANSWER
    assert Entry.of("7", exchange("200", None)).outcome == WRONG_ANSWER
    assert Entry.of("7", exchange("503", None)).outcome == "503"  # HAProxy's own page names none


def test_the_gap_is_the_longest_time_after_the_fault_in_which_nothing_was_answered() -> None:
    answers = [entry("200", at) for at in (1.0, 4.0, 9.9, 10.2, 13.0, 13.5)] + [entry("503", 11.0)]
    ledger = Ledger(struck_at=10.0, closed_at=14.0, entries=answers)

    assert ledger.gap_s == pytest.approx(2.8)
    assert ledger.gaps(1.0) == [(10.2, 13.0)]


def test_a_gap_lasts_until_the_end_where_nothing_is_answered_again() -> None:
    assert Ledger(struck_at=10.0, closed_at=60.0, entries=[entry("200", 9.5)]).gap_s == 50.5


def test_of_a_killed_ingress_only_what_was_inside_and_what_it_could_not_take_is_excused() -> None:
    excused = [entry(CLOSED, 10.0, sent_at=9.9), entry(REFUSED, 11.0, sent_at=11.0)]
    lost = [entry("404", 12.5), entry(CLOSED, 13.5, sent_at=13.0), entry(REFUSED, 13.6, sent_at=13.6)]
    answers = [entry("200", at) for at in (9.9, 12.0, 12.9, 13.8)]
    later = [entry("200", at) for at in (18.8, 19.9)]  # after a longer gap, of another cause
    ledger = Ledger(struck_at=10.0, closed_at=20.0, entries=[*excused, *lost, *answers, *later])

    assert ledger.lost_besides_outage == lost


def test_readiness_is_wrong_where_it_says_otherwise_than_the_answers() -> None:
    readiness = Readiness(port=0)
    ledger = Ledger(struck_at=10.0, closed_at=20.0, entries=[entry("200", 0.1 * tenth) for tenth in range(200)])
    ledger.entries = [one for one in ledger.entries if not 12.05 < one.ended_at < 15.95]  # from 12 to 16: a gap
    said = [(9.0, "200"), (13.0, "503"), (17.0, "200"), (20.0, "200")]
    readiness.samples = [(at, at, one) for at, one in said]

    (since, until, one), (since_again, until_again, other) = readiness.wrong(ledger)
    assert [since, until, since_again, until_again] == pytest.approx([2.0, 3.0, 6.0, 7.0], abs=0.2)
    assert (one, other) == ("200", "503")
    assert longest_s(readiness.wrong(ledger)) == pytest.approx(1.0, abs=0.2)


def test_a_service_that_refuses_for_overload_is_ready() -> None:
    readiness = Readiness(port=0)
    entries = [entry("200" if second % 2 else "429", 10.0 + 0.25 * second) for second in range(40)]
    ledger = Ledger(struck_at=10.0, closed_at=20.0, entries=entries)
    readiness.samples = [(at, at, "200") for at in (9.0, 15.0, 20.0)]

    assert ledger.gaps(0.3)  # between two of its answers with 200
    assert readiness.wrong(ledger) == []

    readiness.samples = [(at, at, "503") for at in (9.0, 15.0, 20.0)]
    assert longest_s(readiness.wrong(ledger)) == pytest.approx(10.0)
