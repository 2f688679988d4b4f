"""PaddedScheduler on real worker threads and numpy: what it cuts, whom it fails, and that it never hangs."""

import asyncio
import gc
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import (
    ConfigurationError,
    DeadlineExceededError,
    GenerationError,
    InputTooLongError,
    OverloadedError,
)
from pipelines.generation.slots.config import SlotsConfig
from pipelines.scheduling.batching import REFIT, CostModel, LearnedCost, Measurement
from pipelines.scheduling.padded import BULK_S, PaddedScheduler
from pipelines.scheduling.scheduler import BatchingConfig, BatchReport, Completed, QueueConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """A row of `n_tokens` ones; its output is their sum."""

    n_tokens: int
    poisonous: bool = False
    max_new_tokens: int = 0


class Model:
    """Pads, sums, and keeps the shape of each batch. `gate` holds a batch back until the test opens it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def forward(self, rows: Sequence[Line]) -> list[int]:
        self.batches.append([row.n_tokens for row in rows])
        self.started.set()
        self.gate.wait(20)
        if any(row.poisonous for row in rows):
            raise ValueError("poison")
        padded = np.zeros((len(rows), max(row.n_tokens for row in rows)), dtype=np.int64)
        for index, row in enumerate(rows):
            padded[index, : row.n_tokens] = 1
        return [int(total) for total in padded.sum(axis=1)]


async def until(condition: Callable[[], bool]) -> None:
    """Yield to the loop until something holds; the test's own timeout is the limit."""
    while not condition():  # noqa: ASYNC110  (worker threads change what is waited for)
        await asyncio.sleep(0.001)


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    """Run a scenario; one that hangs fails in seconds, not at the suite's limit."""

    async def limited() -> T:
        async with asyncio.timeout(20):
            return await scenario()

    return asyncio.run(limited())


async def held(model: Model, scheduler: PaddedScheduler[Line, int]) -> "asyncio.Task[Any]":
    """Occupy the only worker, so that whatever is submitted next has to wait."""
    model.gate.clear()
    model.started.clear()
    task = asyncio.create_task(scheduler.submit([Line(1)]))
    await until(model.started.is_set)
    return task


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.lists(st.integers(1, 40), max_size=8), max_size=12),
    budget=st.integers(1, 100),
    size=st.integers(1, 6),
)
def test_every_row_gets_its_own_output_and_no_batch_exceeds_the_padded_budget(
    requests: list[list[int]], budget: int, size: int
) -> None:
    model = Model()

    async def scenario() -> list[list[int]]:
        scheduler = PaddedScheduler(model.forward, BatchingConfig(max_batch_tokens=budget, max_batch_size=size))
        submitted = [scheduler.submit([Line(n) for n in lengths]) for lengths in requests]
        completed = await asyncio.gather(*submitted)
        await scheduler.drain()
        return [one.outputs for one in completed]

    assert run(scenario) == requests
    for lengths in model.batches:
        assert len(lengths) <= size
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= budget


def test_the_oldest_row_goes_first_and_takes_rows_of_its_own_length_along() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, BatchingConfig(max_batch_tokens=640, max_batch_size=3))
        first = await held(model, scheduler)
        waiting = [asyncio.create_task(scheduler.submit([Line(n)])) for n in (100, 600, 110, 2, 90)]
        await until(lambda: scheduler.waiting_tokens == 902)
        model.gate.set()
        await asyncio.gather(first, *waiting)

    run(scenario)
    assert model.batches == [[1], [100, 110], [600], [2], [90]]  # two of five: for more, those two would wait too long


def test_a_short_row_is_not_padded_to_a_long_one_though_the_budget_has_room() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, BatchingConfig(max_batch_tokens=4096))
        first = await held(model, scheduler)
        waiting = [asyncio.create_task(scheduler.submit([Line(n)])) for n in (500, 3)]
        await until(lambda: scheduler.waiting_tokens == 503)
        model.gate.set()
        await asyncio.gather(first, *waiting)

    run(scenario)
    assert model.batches == [[1], [500], [3]]


def test_an_idle_scheduler_starts_at_once_and_one_with_a_wait_collects_company() -> None:
    async def sizes(config: BatchingConfig) -> list[list[int]]:
        model = Model()
        scheduler = PaddedScheduler(model.forward, config)
        first = asyncio.create_task(scheduler.submit([Line(4)]))
        await asyncio.sleep(0)
        second = asyncio.create_task(scheduler.submit([Line(5)]))
        await asyncio.gather(first, second)
        return model.batches

    assert run(lambda: sizes(BatchingConfig())) == [[4], [5]]
    assert run(lambda: sizes(BatchingConfig(batch_wait_timeout_s=0.2))) == [[4, 5]]
    assert run(lambda: sizes(BatchingConfig(batch_wait_timeout_s=10, max_batch_size=2))) == [[4, 5]]


@pytest.mark.parametrize(("slower", "rows"), [(1, 15), (3, 4), (40, 3)])
def test_where_others_take_the_cores_batches_become_smaller_and_so_take_no_longer(slower: int, rows: int) -> None:
    model, cost = Model(), CostModel(0.006, 0.0002)

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, BatchingConfig(max_batch_size=64, max_batch_s=0.1), cost)
        for _ in range(1000):
            scheduler._pace.note(slower * 0.1, 0.1, 0.1, is_full=True)
        await scheduler.submit([Line(30)] * 60)

    run(scenario)
    assert len(model.batches[0]) == rows


def test_a_completed_request_tells_its_queue_and_inference_time_and_batch_sizes() -> None:
    model = Model()

    async def scenario() -> tuple[Any, Any]:
        scheduler = PaddedScheduler(model.forward, BatchingConfig(max_batch_size=2))
        first = await held(model, scheduler)
        second = asyncio.create_task(scheduler.submit([Line(3), Line(3), Line(3)]))
        await until(lambda: scheduler.waiting_tokens == 9)
        await asyncio.sleep(0.05)
        model.gate.set()
        return await first, await second

    first, second = run(scenario)
    assert first.batch_sizes == (1,)
    assert first.inference_s >= 0.05
    assert second.batch_sizes == (2, 2, 1)
    assert second.queue_s >= 0.05
    assert second.inference_s > 0


def test_a_poisonous_row_fails_alone_and_its_neighbours_are_answered() -> None:
    model = Model()

    async def scenario() -> list[Any]:
        scheduler = PaddedScheduler(model.forward)
        first = await held(model, scheduler)
        rows = [[Line(3)], [Line(3, poisonous=True)], [Line(3), Line(4)]]
        waiting = [asyncio.create_task(scheduler.submit(one)) for one in rows]
        await until(lambda: scheduler.waiting_tokens == 13)
        model.gate.set()
        await first
        return await asyncio.gather(*waiting, return_exceptions=True)

    good, poisoned, also_good = run(scenario)
    assert good.outputs == [3]
    assert isinstance(poisoned, ValueError)
    assert also_good.outputs == [3, 4]
    assert model.batches[1] == [3, 3, 3, 4]


def test_a_forward_that_raises_stop_iteration_or_loses_rows_is_an_error_and_not_a_hang() -> None:
    def stops(rows: Sequence[Line]) -> list[int]:
        return [next(iter([])) for _ in rows]

    def loses(rows: Sequence[Line]) -> list[int]:
        return []

    async def scenario() -> None:
        for forward in (stops, loses):
            with pytest.raises(GenerationError):
                await PaddedScheduler(forward).submit([Line(2)])

    run(scenario)


def test_a_cancelled_request_leaves_the_queue_and_the_others_are_answered() -> None:
    model = Model()

    async def scenario() -> list[Any]:
        scheduler = PaddedScheduler(model.forward)
        first = await held(model, scheduler)
        waiting = [asyncio.create_task(scheduler.submit([Line(n)])) for n in (5, 6, 7)]
        await until(lambda: scheduler.waiting_tokens == 18)
        waiting[1].cancel()
        await until(lambda: scheduler.waiting_tokens == 12)
        model.gate.set()
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    first, one, gone, other = run(scenario)
    assert [first.outputs, one.outputs, other.outputs] == [[1], [5], [7]]
    assert isinstance(gone, asyncio.CancelledError)
    assert model.batches == [[1], [5, 7]]


def test_a_storm_of_cancellations_leaves_an_idle_scheduler_that_still_answers() -> None:
    async def scenario() -> None:
        model = Model()
        scheduler = PaddedScheduler(model.forward, BatchingConfig(max_batch_size=4, concurrency=2))
        dice = random.Random(7)
        for _ in range(20):
            tasks = [
                asyncio.create_task(scheduler.submit([Line(dice.randint(1, 30)) for _ in range(dice.randint(1, 4))]))
                for _ in range(30)
            ]
            for task in tasks:
                if dice.random() < 0.6:
                    await asyncio.sleep(0)
                    task.cancel()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(done, asyncio.CancelledError | Completed)
        await until(lambda: scheduler.running_batches == 0)
        assert scheduler.waiting_tokens == 0
        assert (await scheduler.submit([Line(9)])).outputs == [9]

    run(scenario)


def test_a_request_whose_deadline_runs_out_fails_and_frees_the_queue() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward)
        first = await held(model, scheduler)
        with pytest.raises(DeadlineExceededError):
            await scheduler.submit([Line(5)], deadline=asyncio.get_running_loop().time() + 0.02)
        assert scheduler.waiting_tokens == 0
        model.gate.set()
        assert (await first).outputs == [1]

    run(scenario)


def test_a_request_that_cannot_meet_its_deadline_is_refused_at_once_with_the_time_to_wait() -> None:
    model = Model()

    async def scenario() -> OverloadedError:
        scheduler = PaddedScheduler(model.forward)
        slow = await held(model, scheduler)
        await asyncio.sleep(0.1)
        model.gate.set()
        await slow
        second = await held(model, scheduler)
        with pytest.raises(OverloadedError, match="deadline cannot be met") as refused:
            await scheduler.submit([Line(5)], deadline=asyncio.get_running_loop().time() + 0.001)
        model.gate.set()
        await second
        # idle again: the same deadline is worth a try, or a slow past would refuse for ever
        with pytest.raises(DeadlineExceededError):
            await scheduler.submit([Line(5)], deadline=asyncio.get_running_loop().time() - 1)
        return refused.value

    assert run(scenario).retry_after_s > 0.01


def test_a_batch_that_goes_on_though_nobody_waits_is_counted_from_the_last_departure() -> None:
    gate = threading.Event()

    def deaf(rows: Sequence[Line]) -> list[int]:
        gate.wait(10)
        return [0] * len(rows)

    async def scenario() -> None:
        scheduler = PaddedScheduler(deaf)
        task = asyncio.create_task(scheduler.submit([Line(1)]))
        await until(lambda: scheduler.running_batches == 1)
        assert scheduler.stalled_s == 0.0
        task.cancel()
        await until(lambda: scheduler.stalled_s > 0.01)
        gate.set()
        await until(lambda: scheduler.running_batches == 0)
        assert scheduler.stalled_s == 0.0

    run(scenario)


def test_a_full_queue_refuses_with_its_size_and_a_request_larger_than_the_queue_whatever_it_holds() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, queue=QueueConfig(max_queue_tokens=10))
        with pytest.raises(InputTooLongError, match="the request has 17 tokens; allowed: 10"):
            await scheduler.submit([Line(8), Line(9)])
        first = await held(model, scheduler)
        waiting = asyncio.create_task(scheduler.submit([Line(8)]))
        await until(lambda: scheduler.waiting_tokens == 8)
        with pytest.raises(OverloadedError, match="8 tokens wait and the request has 3; allowed: 10"):
            await scheduler.submit([Line(3)])
        model.gate.set()
        await first
        assert (await waiting).outputs == [8]

    run(scenario)


def test_the_rows_that_wait_are_bounded_however_short_they_are() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, queue=QueueConfig(max_queue_rows=4))
        with pytest.raises(InputTooLongError, match="the request has 5 rows; allowed: 4"):
            await scheduler.submit([Line(1)] * 5)
        first = await held(model, scheduler)
        waiting = [asyncio.create_task(scheduler.submit([Line(1), Line(2)])) for _ in range(2)]
        await until(lambda: scheduler.waiting_rows == 4)
        with pytest.raises(OverloadedError, match="4 rows wait and the request has 1; allowed: 4"):
            await scheduler.submit([Line(1)])
        waiting[0].cancel()
        await until(lambda: scheduler.waiting_rows == 2)
        model.gate.set()
        await first
        assert (await waiting[1]).outputs == [1, 2]
        assert scheduler.waiting_rows == 0

    run(scenario)


SECONDS = CostModel(start_s=0.0, token_s=0.001)  # a row of a thousand tokens costs a second


def test_the_queue_is_bounded_by_the_seconds_that_go_before_a_request() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, cost=SECONDS, queue=QueueConfig(max_queue_s=30))
        first = await held(model, scheduler)
        waiting = [asyncio.create_task(scheduler.submit([Line(10_000)])) for _ in range(3)]
        await until(lambda: scheduler.waiting_tokens == 30_000)
        with pytest.raises(
            OverloadedError, match="about 31.6 s of work go before this request; allowed: 30 s"
        ) as refused:
            await scheduler.submit([Line(1)])
        assert refused.value.retry_after_s == pytest.approx(1.6, abs=0.1)
        model.gate.set()
        await asyncio.gather(first, *waiting)

    run(scenario)


def test_of_a_list_only_its_share_goes_before_a_short_request() -> None:
    model = Model()

    async def scenario() -> list[float]:
        scheduler = PaddedScheduler(model.forward, cost=SECONDS, queue=QueueConfig(max_queue_s=30))
        first = await held(model, scheduler)
        large = asyncio.create_task(scheduler.submit([Line(1000)] * 100))
        await until(lambda: scheduler.waiting_tokens == 100_000)
        waits = [scheduler.expected_wait_s(rows) for rows in ([Line(10)], [Line(1000)] * 20, [Line(1000)] * 500)]
        with pytest.raises(OverloadedError, match="s of work go before this request"):
            await scheduler.submit([Line(1000)] * 500)
        model.gate.set()
        await asyncio.gather(first, large)
        return waits

    short, some, many = run(scenario)
    assert short == pytest.approx(1, rel=0.1)  # one row of the list
    assert some == pytest.approx(20, rel=0.1)  # as much as it has itself
    assert many == pytest.approx(100, rel=0.1)  # all of it


def test_a_request_is_refused_for_its_own_work_where_that_outlasts_its_deadline() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, cost=SECONDS)
        first = await held(model, scheduler)
        deadline = asyncio.get_running_loop().time() + 50
        with pytest.raises(
            OverloadedError, match="the answer takes about 100.00 s, 0.00 s of them other requests' work"
        ):
            await scheduler.submit([Line(1000)] * 100, deadline)
        with pytest.raises(OverloadedError, match="the deadline cannot be met"):  # a prediction is not that sure
            await scheduler.submit([Line(1000)] * 45, deadline)
        scheduler.admit([Line(1000)] * 25, deadline, asyncio.get_running_loop().time())
        model.gate.set()
        await first
        assert (await scheduler.submit([Line(1000)] * 100, deadline)).outputs  # idle: worth a try

    run(scenario)


def test_work_counts_what_waits_in_seconds_whatever_the_number_of_requests() -> None:
    model = Model()

    async def scenario() -> tuple[float, float, float]:
        scheduler = PaddedScheduler(model.forward, cost=SECONDS)
        idle_s = scheduler.work_s
        first = await held(model, scheduler)
        short = asyncio.create_task(scheduler.submit([Line(1)]))
        await until(lambda: scheduler.waiting_tokens == 1)
        short_s = scheduler.work_s
        large = asyncio.create_task(scheduler.submit([Line(1000)] * 100))
        await until(lambda: scheduler.waiting_tokens == 100_001)
        large_s = scheduler.work_s
        model.gate.set()
        await asyncio.gather(first, short, large)
        return idle_s, short_s, large_s

    idle_s, short_s, large_s = run(scenario)
    assert idle_s == 0.0
    assert short_s == pytest.approx(0.001, abs=0.001)
    assert large_s == pytest.approx(100, rel=0.1)


def test_the_time_of_a_row_is_the_mean_of_those_that_wait_now_and_not_of_those_that_did() -> None:
    model = Model()

    async def scenario() -> list[float]:
        scheduler = PaddedScheduler(model.forward, cost=SECONDS)
        times = [scheduler.row_s]
        for tokens in (1000, 10):
            first = await held(model, scheduler)
            waiting = [asyncio.create_task(scheduler.submit([Line(tokens)])) for _ in range(3)]
            await until(lambda tokens=tokens: scheduler.waiting_tokens == 3 * tokens)  # type: ignore[misc]
            times.append(scheduler.row_s / scheduler._pace.until_done_s(1.0, 0.0))
            model.gate.set()
            await asyncio.gather(first, *waiting)
            times.append(scheduler.row_s)
        return times

    idle, large, idle_again, small, _ = run(scenario)
    assert idle == idle_again == 0.0
    assert large == pytest.approx(1.0, rel=0.1)
    assert small == pytest.approx(0.01, rel=0.1)


def test_a_batch_tells_the_pace_its_work_its_fixed_cost_and_whether_rows_were_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, told = Model(), list[tuple[float, float, bool]]()

    def note(_real_s: float, predicted_s: float, work_s: float, *, is_full: bool) -> None:
        told.append((round(predicted_s, 3), round(work_s, 3), is_full))

    async def scenario() -> None:
        config = BatchingConfig(max_batch_size=2, max_batch_s=10)
        scheduler = PaddedScheduler(model.forward, config, CostModel(0.5, 0.001))
        monkeypatch.setattr(scheduler._pace, "note", note)
        first = await held(model, scheduler)
        waiting = [asyncio.create_task(scheduler.submit([Line(1000)])) for _ in range(3)]
        await until(lambda: scheduler.waiting_tokens == 3000)
        model.gate.set()
        await asyncio.gather(first, *waiting)

    run(scenario)
    assert told[1:] == [(2.5, 2.0, True), (1.5, 1.0, False)]


@pytest.mark.parametrize("concurrency", [1, 2])
def test_requests_take_turns_whatever_their_number_of_rows(concurrency: int) -> None:
    model = Model()

    async def scenario() -> None:
        config = BatchingConfig(max_batch_size=1, concurrency=concurrency)
        scheduler = PaddedScheduler(model.forward, config, CostModel(start_s=0.0, token_s=1e-7))
        first = [await held(model, scheduler) for _ in range(concurrency)]
        large = asyncio.create_task(scheduler.submit([Line(100)] * 50))
        await until(lambda: scheduler.waiting_tokens == 5000)
        other = asyncio.create_task(scheduler.submit([Line(101)] * 3))
        short = asyncio.create_task(scheduler.submit([Line(7)]))
        await until(lambda: scheduler.waiting_tokens == 5310)
        model.gate.set()
        await asyncio.gather(*first, large, other, short)

    run(scenario)
    order = [batch[0] for batch in model.batches[concurrency:]]
    assert order.index(7) <= 3
    assert max(place for place, tokens in enumerate(order) if tokens == 101) <= 3 * 3


def test_bulk_requests_wait_until_no_others_do_and_share_no_batch_with_them() -> None:
    model = Model()

    async def scenario() -> tuple[list[float], list[float]]:
        scheduler = PaddedScheduler(model.forward, BatchingConfig(max_batch_size=4), SECONDS)
        first = await held(model, scheduler)
        bulk = [asyncio.create_task(scheduler.submit([Line(100)] * 8, bulk=True)) for _ in range(2)]
        await until(lambda: scheduler.waiting_tokens == 1600)
        others = [asyncio.create_task(scheduler.submit([Line(n)] * 2)) for n in (90, 100, 110)]
        await until(lambda: scheduler.waiting_tokens == 2200)
        waits = [scheduler.expected_wait_s([Line(1000)] * 99), scheduler.expected_wait_s([Line(1000)] * 99, bulk=True)]
        alone = [scheduler.expected_wait_s([Line(1)]), scheduler.expected_wait_s([Line(1)], bulk=True)]
        model.gate.set()
        await asyncio.gather(first, *bulk, *others)
        return waits, alone

    (before, behind), (short, short_behind) = run(scenario)
    after_first = [tokens for batch in model.batches[1:] for tokens in batch]
    assert sorted(after_first[:6]) == [90, 90, 100, 100, 110, 110]
    assert after_first[6:] == [100] * 16
    assert before == pytest.approx(0.6, rel=0.2)  # what bulk requests have waiting goes before nobody else
    assert behind == pytest.approx(2.2, rel=0.2)
    assert short < 0.6 < short_behind


def test_bulk_requests_fill_half_of_the_queue_and_leave_the_rest_to_others() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, queue=QueueConfig(max_queue_tokens=1000))
        first = await held(model, scheduler)
        inside = [asyncio.create_task(scheduler.submit([Line(700)], bulk=True))]  # more than half, but alone
        await until(lambda: scheduler.waiting_tokens == 700)
        with pytest.raises(OverloadedError, match="the bulk half of the queue is full: 700 tokens .* allowed: 500 "):
            await scheduler.submit([Line(1)], bulk=True)
        inside.append(asyncio.create_task(scheduler.submit([Line(300)])))
        await until(lambda: scheduler.waiting_tokens == 1000)
        model.gate.set()
        await asyncio.gather(first, *inside)
        assert (scheduler.waiting_tokens, scheduler.waiting_rows) == (0, 0)

    run(scenario)


def test_a_list_leaves_a_worker_free_while_short_requests_come() -> None:
    model = Model()

    async def scenario() -> tuple[int, int]:
        config = BatchingConfig(max_batch_size=1, concurrency=2)
        scheduler = PaddedScheduler(model.forward, config, CostModel(start_s=0.0, token_s=BULK_S / 100))
        model.gate.clear()
        large = asyncio.create_task(scheduler.submit([Line(100)] * 9))
        await until(lambda: scheduler.running_batches == 2)  # nobody else is there
        model.gate.set()
        await large
        model.gate.clear()
        short = asyncio.create_task(scheduler.submit([Line(3)]))
        await until(lambda: scheduler.running_batches == 1)
        large = asyncio.create_task(scheduler.submit([Line(100)] * 9))
        await until(lambda: scheduler.running_batches == 2)
        model.gate.set()
        await short
        model.gate.clear()
        await until(lambda: scheduler.running_batches == 1)
        busy = scheduler.running_batches
        await asyncio.sleep(0.05)
        still = scheduler.running_batches
        model.gate.set()
        await large
        return busy, still

    assert run(scenario) == (1, 1)


@pytest.mark.parametrize(("clients", "learns"), [(2, True), (1, False)])
def test_the_cost_is_learned_from_batches_beside_which_no_worker_is_free(clients: int, learns: bool) -> None:
    model = Model()
    learned = LearnedCost([Measurement(1, 16, 60.0)])  # a minute for a row: it was not measured here
    before = learned.model
    both = threading.Barrier(clients)

    def forward(rows: Sequence[Line]) -> list[int]:
        both.wait(20)
        return model.forward(rows)

    async def scenario() -> CostModel:
        scheduler = PaddedScheduler(forward, BatchingConfig(concurrency=2), before, learned=learned)

        async def client() -> None:
            for _ in range(REFIT):
                await scheduler.submit([Line(16)])

        await asyncio.gather(*(client() for _ in range(clients)))
        await scheduler.drain()
        return scheduler.cost

    after = run(scenario)

    assert (after != before) is learns
    if learns:
        assert after.batch_s(1, 16) < before.batch_s(1, 16) / 10


def test_what_is_reported_of_a_batch_are_real_tokens_and_padded_ones() -> None:
    model, reports = Model(), list[BatchReport]()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward, on_batch=reports.append)
        first = await held(model, scheduler)
        waiting = [asyncio.create_task(scheduler.submit([Line(n)])) for n in (5, 6)]
        await until(lambda: scheduler.waiting_tokens == 11)
        model.gate.set()
        completed = await asyncio.gather(first, *waiting)
        assert [(one.read_tokens, one.written_tokens) for one in completed] == [(1, 0), (5, 0), (6, 0)]

    run(scenario)
    assert [(one.rows, one.read_tokens, one.padded_tokens) for one in reports] == [(1, 1, 1), (2, 11, 12)]


def test_drain_drains_what_is_inside_and_refuses_what_comes_after() -> None:
    model = Model()

    async def scenario() -> None:
        scheduler = PaddedScheduler(model.forward)
        first = await held(model, scheduler)
        second = asyncio.create_task(scheduler.submit([Line(2)]))
        await until(lambda: scheduler.waiting_tokens == 2)
        closing = asyncio.create_task(scheduler.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="shutting down"):
            await scheduler.submit([Line(1)])
        model.gate.set()
        assert (await first).outputs == [1]
        assert (await second).outputs == [2]
        await closing
        await scheduler.drain()

    run(scenario)


def test_drain_fails_whoever_is_left_when_the_time_to_drain_is_over() -> None:
    model = Model()

    async def scenario() -> list[Any]:
        scheduler = PaddedScheduler(model.forward)
        first = await held(model, scheduler)
        second = asyncio.create_task(scheduler.submit([Line(2)]))
        await until(lambda: scheduler.waiting_tokens == 2)
        await scheduler.drain(0.02)
        left: list[Any] = list(await asyncio.gather(first, second, return_exceptions=True))
        model.gate.set()
        await until(lambda: scheduler.running_batches == 0)
        return left

    assert [type(error) for error in run(scenario)] == [OverloadedError, OverloadedError]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BatchingConfig(max_batch_size=0), "max_batch_size is 0; allowed: an integer from 1"),
        (lambda: BatchingConfig(batch_wait_timeout_s=-1), "batch_wait_timeout_s is -1; allowed: 0 to 10"),
        (lambda: QueueConfig(max_queue_s=0), "max_queue_s is 0; allowed: above 0 and at most 86400"),
        (lambda: SlotsConfig(max_paused=-1), "max_paused is -1; allowed: an integer from 0"),
    ],
)
def test_a_limit_out_of_range_is_refused_by_name(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        build()

    assert str(refused.value) == message


@pytest.mark.parametrize("drained", [True, False])
def test_a_scheduler_that_is_gone_leaves_no_thread_behind(drained: bool) -> None:
    before = set(threading.enumerate())

    async def scenario() -> None:
        scheduler = PaddedScheduler(Model().forward, BatchingConfig(concurrency=3))
        assert (await scheduler.submit([Line(2)])).outputs == [2]
        if drained:
            await scheduler.drain()

    run(scenario)
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("forward-"):
            thread.join(10)
            assert not thread.is_alive()
