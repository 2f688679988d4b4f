"""CostModel: fitted to measured batches, and again to those that are served."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines
from pipelines.scheduling.batching import (
    RECENT,
    REFIT,
    UNMEASURED,
    CostModel,
    LearnedCost,
    Measurement,
)
from pipelines.scheduling.cost_measurement import shapes_within
from pipelines.scheduling.padded import PaddedScheduler
from pipelines.scheduling.scheduler import GPU_BATCHING, BatchingConfig

QUIET = CostModel(start_s=0.008, token_s=0.0003, pair_s=2e-7)
PRICES = st.floats(1e-9, 1.0)
SHAPES = list(shapes_within(512, 100_000, 64))


def measured(cost: CostModel, slower: float = 1.0) -> list[Measurement]:
    return [Measurement(rows, tokens, slower * cost.batch_s(rows, tokens)) for rows, tokens in SHAPES]


@given(start=PRICES, token=PRICES, pair=PRICES)
def test_the_prices_of_exact_measurements_are_found_again(start: float, token: float, pair: float) -> None:
    true = CostModel(start, token, pair)
    shapes = list(shapes_within(512, 100_000, 64))

    fitted = CostModel.fit([Measurement(rows, tokens, true.batch_s(rows, tokens)) for rows, tokens in shapes])

    for rows, tokens in shapes:
        assert fitted.batch_s(rows, tokens) == pytest.approx(true.batch_s(rows, tokens), rel=1e-6)


@given(st.lists(st.builds(Measurement, st.integers(1, 64), st.integers(1, 512), st.floats(1e-6, 10)), min_size=1))
def test_whatever_was_measured_no_price_is_negative_and_tokens_cost_something(measured: list[Measurement]) -> None:
    cost = CostModel.fit(measured)

    assert min(cost.start_s, cost.pair_s) >= 0
    assert cost.token_s > 0


def test_the_shapes_that_are_measured_keep_to_the_limits_cheapest_first() -> None:
    shapes = list(shapes_within(max_length=100, max_batch_tokens=256, max_batch_size=3))

    assert shapes == [(1, 16), (3, 16), (1, 64), (1, 100), (3, 64)]


@pytest.mark.parametrize("task", ["text-classification", "question-answering", "token-classification"])
def test_a_real_model_is_measured_before_it_serves(task: str, exported: Callable[..., Path]) -> None:
    scheduler = pipelines.load(exported("distilbert", task)).scheduler(
        BatchingConfig(max_batch_tokens=1024, max_batch_size=8)
    )

    assert isinstance(scheduler, PaddedScheduler)
    cost = scheduler.cost
    assert cost != UNMEASURED
    assert 0 < cost.batch_s(1, 16) < 1.0
    assert cost.batch_s(8, 128) > cost.batch_s(1, 16)


@pytest.mark.parametrize("slower", [3.0, 0.25])
def test_a_model_of_a_busy_start_becomes_that_of_a_quiet_machine_by_serving_some_shapes(slower: float) -> None:
    learned = LearnedCost(measured(QUIET, slower))
    served = [Measurement(rows, tokens, QUIET.batch_s(rows, tokens)) for rows, tokens in [(1, 16), (8, 20), (2, 150)]]

    refits = [learned.note(one) for _ in range(REFIT) for one in served]

    assert sum(refits) == len(served)
    for rows, tokens in SHAPES:
        assert learned.model.batch_s(rows, tokens) == pytest.approx(QUIET.batch_s(rows, tokens), rel=0.01)


def test_a_machine_that_slows_down_is_followed_and_forgotten_again() -> None:
    learned = LearnedCost(measured(QUIET))
    for now, slower in ((4.0, 4.0), (1.0, 1.0)):
        for _ in range(max(REFIT, len(SHAPES) * RECENT) * 2):
            for one in measured(QUIET, slower):
                learned.note(one)
        assert learned.model.batch_s(8, 64) == pytest.approx(now * QUIET.batch_s(8, 64), rel=0.01)


def test_one_batch_that_was_held_up_changes_little() -> None:
    learned = LearnedCost(measured(QUIET))
    served = Measurement(8, 64, QUIET.batch_s(8, 64))

    for number in range(REFIT):
        learned.note(Measurement(8, 64, 50 * served.seconds) if number == REFIT - 2 else served)

    assert learned.model.batch_s(8, 64) == pytest.approx(served.seconds, rel=0.25)


def test_batches_of_one_shape_keep_what_was_measured_of_the_others() -> None:
    learned = LearnedCost(measured(QUIET))
    for _ in range(REFIT):
        learned.note(Measurement(1, 16, QUIET.batch_s(1, 16)))

    assert learned.model.start_s == pytest.approx(QUIET.start_s, rel=0.01)


def test_a_packed_batch_costs_what_its_tokens_and_pairs_cost() -> None:
    packed = CostModel(start_s=0.008, token_s=0.0003, pair_s=2e-7, packed=True)
    lengths = [3, 200, 57]
    each_s = [packed.row_s(n) for n in lengths]
    assert packed.batch_s(*packed.shape(lengths)) == pytest.approx(packed.start_s + sum(each_s))
    assert packed.padded_tokens(lengths) == 260
    assert packed.shape([64] * 8) == (8, 64)
    assert QUIET.shape(lengths) == (3, 200)
    assert QUIET.padded_tokens(lengths) == 600


def test_a_packed_model_stays_packed_when_it_learns() -> None:
    learned = LearnedCost(measured(QUIET), packed=True)
    shape = learned.model.shape([5, 60, 300])
    for _ in range(REFIT):
        learned.note(Measurement(*shape, seconds=0.1))
    assert learned.model.packed
    assert learned.model.batch_s(*shape) == pytest.approx(0.1, rel=0.5)


def test_large_batches_are_measured_where_they_are_allowed() -> None:
    assert max(rows for rows, _ in shapes_within(512, 4096, 32)) == 16
    large = list(shapes_within(512, GPU_BATCHING.max_batch_tokens, GPU_BATCHING.max_batch_size))
    assert (256, 128) in large
    assert max(rows * tokens for rows, tokens in large) == GPU_BATCHING.max_batch_tokens
