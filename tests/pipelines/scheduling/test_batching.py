"""CostModel: fitted to measured batches, and what it makes of a queue of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines
from pipelines.scheduling.batching import UNMEASURED, CostModel, Measurement, cut, shapes_within
from pipelines.scheduling.padded import PaddedScheduler
from pipelines.scheduling.scheduler import BatchingConfig

CPU = CostModel(start_s=0.008, token_s=0.0003, pair_s=2e-7)  # BERT-base in int8 on two cores
GPU = CostModel(start_s=0.004, token_s=0.000002, pair_s=1e-9)
PRICES = st.floats(1e-9, 1.0)


@dataclass(eq=False)
class Line:
    n_tokens: int


def first_batch(cost: CostModel, *lengths: int, size: int = 64, tokens: int = 100_000) -> list[int]:
    first, *others = map(Line, lengths)
    config = BatchingConfig(max_batch_tokens=tokens, max_batch_size=size)
    return [one.n_tokens for one in cut(first, others, len(lengths), config, cost)]


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


def test_where_starting_costs_little_a_batch_of_long_rows_stays_small_and_one_of_short_rows_grows() -> None:
    assert len(first_batch(CPU, *[384] * 64)) == 2
    assert len(first_batch(CPU, *[16] * 64)) == 32
    assert len(first_batch(GPU, *[384] * 64)) > 48


def test_few_waiting_rows_go_in_small_batches_since_each_waits_for_the_rest_of_its_batch() -> None:
    assert len(first_batch(CPU, *[64] * 4)) == 2
    assert len(first_batch(CPU, *[64] * 64)) == 8


def test_a_row_joins_only_where_its_padding_costs_less_than_a_batch_of_its_own() -> None:
    assert first_batch(CPU, 20, 200, 30) == [20, 30]
    assert first_batch(GPU, 20, 200, 30) == [20, 30, 200]


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
