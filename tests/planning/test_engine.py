"""A simulated engine: what waits, what it reads and writes, and whose turn it is, under the scheduler of slots."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pipelines.generation.slots.config import SlotsConfig
from pipelines.scheduling.scheduler import QueueConfig
from planning.deciding.policy import FixedReplicas
from planning.simulated.engine import MOST_ALIKE, DecodeCost
from planning.simulated.fleet import Outcome, Site
from planning.simulated.generator import GeneratorModel
from planning.simulated.simulation import Played, Setting, play
from planning.traces.trace import Sizes, Trace, named

STEP_S = 0.01
COST = DecodeCost(prompt_token_s=0.001, step_s=STEP_S, sequence_s=0.0)
PATIENT = QueueConfig(max_queue_s=86_400)


def model(slots: int = 1, turn_tokens: int = 10_000, chunk: int = 128, cost: DecodeCost = COST) -> GeneratorModel:
    return GeneratorModel(cost, SlotsConfig(slots, 100_000, chunk, turn_tokens), PATIENT)


def listed(*requests: tuple[float, int, int]) -> Trace:
    """Requests as (arrival in seconds, tokens read, tokens written)."""
    arrivals, tokens, written = (np.asarray(column) for column in zip(*requests, strict=True))
    sizes = Sizes(lambda n, _: tokens, lambda n, _: written)
    return sizes.trace("listed", 1000.0, arrivals.astype(float), 0)


def played(trace: Trace, served: GeneratorModel, replicas: int = 1) -> Played:
    return play(trace, FixedReplicas(replicas), Setting(served, Site(), 0.0, tick_s=60.0))


def first_tokens_s(trace: Trace, served: GeneratorModel) -> Sequence[float]:
    found = played(trace, served)
    assert found.count(Outcome.ANSWERED) == len(trace)
    return [float(one) for one in found.latencies_s]


def test_the_first_token_comes_with_the_round_that_reads_the_end_of_the_prompt() -> None:
    assert first_tokens_s(listed((1.0, 100, 50)), model()) == pytest.approx([0.1 + STEP_S])
    chunks_s = 3 * 0.1  # 300 tokens in chunks of 100, of which the last one is in a round that decodes
    assert first_tokens_s(listed((1.0, 300, 50)), model(chunk=100)) == pytest.approx([chunks_s + STEP_S])


def test_who_finds_no_slot_waits_for_the_whole_answer_before() -> None:
    first, second = first_tokens_s(listed((1.0, 10, 101), (1.0, 10, 5)), model(slots=1))
    # The first token comes with the prompt, a second one in the same round.
    assert second == pytest.approx(first + 99 * STEP_S + 0.01 + STEP_S)


def test_a_sequence_that_had_its_turn_is_paused_for_one_that_waits() -> None:
    alone, behind = (
        first_tokens_s(listed((1.0, 10, 5000), (2.0, 10, 5)), model(slots=1, turn_tokens=turn))
        for turn in (64, 100_000)
    )
    assert behind[1] > 45
    assert alone[1] < 64 * STEP_S + 0.1
    assert alone[0] == behind[0]


def test_a_paused_sequence_goes_on_and_every_answer_is_complete() -> None:
    trace = listed((1.0, 10, 300), *[(1.5 + n, 10, 20) for n in range(5)])
    found = played(trace, model(slots=1, turn_tokens=32))
    assert found.count(Outcome.ANSWERED) == 6


def test_streams_slow_each_other_down_as_the_cost_of_a_sequence_says() -> None:
    cost = DecodeCost(0.0, 0.01, 0.002)
    lone = played(listed((0.0, 1, 1000)), model(8, cost=cost))
    crowd = played(listed(*[(0.0, 1, 1000)] * 8, (0.001, 1, 1)), model(8, cost=cost))
    assert lone.count(Outcome.ANSWERED) == 1
    # The ninth waits for the eight, whose rounds take as long as eight sequences make them.
    assert float(crowd.latencies_s[8]) == pytest.approx(1000 * (0.01 + 8 * 0.002), rel=0.01)


def test_as_many_slots_as_servers_wait_as_erlang_says() -> None:
    """M/D/4: a slot is a server, as steps take the same time however many sequences they decode."""
    tokens = 101  # a second: the first token comes with the prompt
    sizes = Sizes(lambda n, _: np.ones(n, np.int64), lambda n, _: np.full(n, tokens))
    trace = named("constant:3.2", 1.5, sizes, 3)
    assert trace is not None
    cost = DecodeCost(0.0, STEP_S, 0.0)
    waits_s = played(trace, model(slots=4, cost=cost)).latencies_s - STEP_S
    # Cosmetatos: M/D/c from M/M/c; a request also waits for the end of the round that runs, half a step on average.
    erlang_s, load, count = 0.7455, 0.8, 4
    correction = 1 + (1 - load) * (count - 1) * (np.sqrt(4 + 5 * count) - 2) / (16 * load * count)
    assert waits_s.mean() == pytest.approx(erlang_s / 2 * correction, rel=0.15)


def test_requests_that_arrive_in_a_long_row_of_alike_rounds_begin_at_the_next_one() -> None:
    first, second = first_tokens_s(
        listed((0.0, 1, 10_000), (50.004, 1, 5)), model(slots=2, cost=DecodeCost(0, STEP_S, 0))
    )
    assert first == pytest.approx(STEP_S)
    assert STEP_S <= second <= 2 * STEP_S + 1e-9


def test_a_deadline_ends_a_sequence_and_frees_its_slot() -> None:
    arrivals, tokens, written = np.asarray([0.0, 1.0]), np.asarray([10, 10]), np.asarray([100_000 - 20, 5])
    trace = Sizes(lambda n, _: tokens, lambda n, _: written).trace("listed", 200.0, arrivals, 0)
    found = played(replace(trace, deadlines_s=np.asarray([30.0, np.inf])), model(slots=1))
    assert [found.count(one) for one in (Outcome.EXPIRED, Outcome.ANSWERED, Outcome.UNDER_WAY)] == [1, 1, 0]
    assert found.latencies_s[1] == pytest.approx(29.0 + 0.01 + STEP_S, abs=(MOST_ALIKE + 1) * STEP_S)
