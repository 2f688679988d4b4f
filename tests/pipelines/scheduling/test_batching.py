"""What the cost model makes of a queue of rows."""

import math
from dataclasses import dataclass, replace

from pipelines.scheduling.batching import MEMORY, CostModel, LearnedCost, Measurement, cut
from pipelines.scheduling.scheduler import BatchingConfig

CPU = CostModel(start_s=0.008, token_s=0.0003, pair_s=2e-7)  # BERT-base in int8 on two cores
GPU = CostModel(start_s=0.004, token_s=0.000002, pair_s=1e-9)


@dataclass(eq=False)
class Line:
    n_tokens: int


def first_batch(
    cost: CostModel, *lengths: int, size: int = 64, tokens: int = 100_000, limit_s: float = math.inf
) -> list[int]:
    first, *others = map(Line, lengths)
    config = BatchingConfig(max_batch_tokens=tokens, max_batch_size=size)
    return [one.n_tokens for one in cut(first, others, len(lengths), config, cost, limit_s)]


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


def test_a_packed_batch_takes_rows_of_any_length_in_their_order() -> None:
    packed = replace(GPU, packed=True)
    assert first_batch(packed, 20, 200, 30, 500) == [20, 200, 30, 500]
    assert first_batch(packed, 20, 200, 30, 500, tokens=300) == [20, 200, 30]
    assert first_batch(packed, 20, 200, 30, 500, size=2) == [20, 200]
    assert first_batch(packed, 500, 20, tokens=300) == [500]


def test_a_packed_batch_ends_as_a_padded_one_does_where_more_rows_save_nothing() -> None:
    for cost in (CPU, GPU):
        for lengths in ([384] * 64, [16] * 64, [64] * 4):
            assert first_batch(replace(cost, packed=True), *lengths) == first_batch(cost, *lengths)


def test_a_batch_takes_no_longer_than_its_limit_unless_one_row_does() -> None:
    for cost in (CPU, replace(CPU, packed=True)):
        rows = first_batch(cost, *[16] * 64, limit_s=0.1)
        assert cost.batch_s(len(rows), 16) <= 0.1 < cost.batch_s(len(rows) + 1, 16)
        assert first_batch(cost, *[384] * 64, limit_s=0.1) == [384]
    assert first_batch(replace(CPU, packed=True), 16, 64, 16, 64, limit_s=0.032) == [16, 16]


def test_where_starting_takes_most_of_a_batch_it_grows_beyond_its_limit() -> None:
    slow = CostModel(start_s=0.5, token_s=0.001)
    for cost in (slow, replace(slow, packed=True)):
        assert first_batch(cost, *[100] * 64, limit_s=0.1) == [100] * 15


def test_what_was_served_while_the_machine_was_busy_is_forgotten_though_its_shapes_are_rare() -> None:
    shapes = [(rows, tokens) for rows in (1, 4, 16) for tokens in (16, 64, 128, 384)]
    learned = LearnedCost([Measurement(*shape, CPU.batch_s(*shape)) for shape in shapes])
    for shape in 8 * shapes:
        learned.note(Measurement(*shape, 3 * CPU.batch_s(*shape)))
    assert learned.model.batch_s(4, 64) > 2 * CPU.batch_s(4, 64)

    for _ in range(2 * MEMORY):
        learned.note(Measurement(4, 64, CPU.batch_s(4, 64)))

    for shape in shapes:
        assert abs(learned.model.batch_s(*shape) / CPU.batch_s(*shape) - 1) < 0.01
