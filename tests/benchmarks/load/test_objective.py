"""A service level of streams: what counts as good, and as missed while it still runs."""

from benchmarks.load.client import Exchange
from benchmarks.load.objective import Objective

LEVEL = Objective(first_token_s=1.0, token_s=0.1)


def exchange(*event_times: float, ended_at: float = 0.0, new_tokens: int = 11) -> Exchange:
    made = Exchange(b"", 10.0, lambda _: None, new_tokens=new_tokens)
    made.event_times = list(event_times)
    made.ended_at = ended_at
    return made


def test_a_stream_is_good_where_its_first_token_and_the_mean_of_the_others_are_in_time() -> None:
    assert LEVEL.is_met(exchange(10.9, 11.5, 11.8, ended_at=11.8))
    assert not LEVEL.is_met(exchange(11.1, 11.5, ended_at=11.5))
    assert not LEVEL.is_met(exchange(10.5, 11.6, ended_at=11.6)), "ten tokens in 1.1 s, in however many events"
    assert not LEVEL.is_met(exchange(ended_at=12.0)), "without events it began when it ended"


def test_a_stream_under_way_has_missed_what_it_can_no_longer_keep() -> None:
    assert not LEVEL.is_missed(exchange(), 10.9)
    assert LEVEL.is_missed(exchange(), 11.1)
    assert not LEVEL.is_missed(exchange(10.5), 11.4)
    assert LEVEL.is_missed(exchange(10.5), 11.6)


def test_a_latency_bounds_the_whole_answer() -> None:
    assert Objective(latency_s=2.0).is_met(exchange(ended_at=11.9))
    assert Objective(latency_s=2.0).is_missed(exchange(), 12.1)
