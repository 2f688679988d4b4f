"""SlotScheduler on a tiny real model: what it admits, counts, streams and lets go; no thread waits for a sequence."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

import pipelines
from pipelines.errors import DeadlineExceededError, GenerationError, InputTooLongError, OverloadedError
from pipelines.generation.plain.decoder import CausalDecoder
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from pipelines.scheduling.scheduler import BatchReport, QueueConfig
from pipelines.scheduling.slots import SlotScheduler

T = TypeVar("T")
SLOTS = 3


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(60):
            return await scenario()

    return asyncio.run(limited())


@pytest.fixture(scope="module", params=["slots", "plain"])
def generator(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Any:
    """A pipeline of either engine."""
    folder = exported("llama", "text-generation")
    loaded = pipelines.load(folder, slots=SlotsConfig(SLOTS, 250, 16, turn_tokens=8))
    if request.param == "plain":
        session = InferenceSession(ModelArtifact.open(folder).graph("model"), SessionConfig())
        loaded.generator._engine = PlainEngine(CausalDecoder(session), SLOTS)
    return loaded


def rows(generator: Any, *texts: str, max_new_tokens: int = 10, **parameters: Any) -> list[Any]:
    """Prompts of `texts` whose answers have exactly `max_new_tokens` tokens, unless they are told to stop."""
    length = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens}
    given = generator.parameters({**length, "do_sample": False, **parameters})
    return [row for (row,) in generator.preprocess(list(texts), given)]


def tokens(answer: Any) -> list[int]:
    found: list[int] = answer.generations[0].token_ids
    return found


def test_requests_are_answered_as_each_alone_with_the_tokens_that_were_read_and_written(generator: Any) -> None:
    asked = [rows(generator, f"The film number {n}", max_new_tokens=3 + n) for n in range(12)]

    async def scenario() -> list[Any]:
        scheduler = generator.scheduler()
        return list(await asyncio.gather(*(scheduler.submit(one) for one in asked)))

    completed = run(scenario)
    for (row,), done in zip(asked, completed, strict=True):
        (answer,) = done.outputs
        assert tokens(answer) == tokens(generator.forward([row])[0])
        assert (done.read_tokens, done.written_tokens) == (len(row.prompt), len(answer.generations[0].steps))
        assert done.queue_s >= 0
        assert done.inference_s > 0


@pytest.mark.parametrize("changes", [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2}])
def test_a_request_says_when_its_first_token_was_there(generator: Any, changes: dict[str, Any]) -> None:
    (row,) = rows(generator, "a", max_new_tokens=200)
    asked = replace(row, config=replace(row.config, **changes))

    async def scenario() -> tuple[float, Any, float]:
        scheduler = generator.scheduler()
        begins = time.perf_counter()
        return begins, await scheduler.submit([asked]), time.perf_counter()

    begins, completed, ends = run(scenario)
    first = completed.first_token_at
    assert begins + completed.queue_s <= first < ends
    assert first - begins < ends - first  # one token of two hundred


def test_a_list_is_answered_in_order_and_a_stream_token_by_token(generator: Any) -> None:
    asked = rows(generator, "a", "The film", "It was", "b", max_new_tokens=8)

    async def scenario() -> tuple[Any, list[tuple[int, Any]]]:
        scheduler = generator.scheduler()
        completed = await scheduler.submit(asked)
        return completed, [item async for item in scheduler.stream(asked)]

    completed, streamed = run(scenario)
    for index, answer in enumerate(completed.outputs):
        assert [step.token_id for at, step in streamed if at == index] == tokens(answer)


def test_streams_and_requests_cost_no_thread(generator: Any) -> None:
    before = threading.active_count()

    async def scenario() -> int:
        scheduler = generator.scheduler()
        streams = [scheduler.stream(rows(generator, f"a {n}", max_new_tokens=30)) for n in range(40)]
        waiting = [asyncio.create_task(scheduler.submit(rows(generator, f"b {n}"))) for n in range(40)]
        firsts = [await anext(stream) for stream in streams[:3]]
        assert len(firsts) == 3
        during = threading.active_count()
        for stream in streams:
            await stream.aclose()
        await asyncio.gather(*waiting)
        return during

    assert run(scenario) - before <= 1


def test_a_row_of_a_stream_that_has_enough_ends_and_the_others_go_on(generator: Any) -> None:
    async def scenario() -> list[int]:
        scheduler = generator.scheduler()
        stream = scheduler.stream(rows(generator, "a", "The film", max_new_tokens=12))
        seen = []
        async for index, _ in stream:
            seen.append(index)
            if index == 0:
                stream.stop(0)
        return seen

    seen = run(scenario)
    assert seen.count(0) == 1
    assert seen.count(1) > 1


def test_whoever_leaves_makes_room_at_the_next_token(generator: Any) -> None:
    async def scenario() -> None:
        scheduler: SlotScheduler = generator.scheduler()
        long = [
            asyncio.create_task(scheduler.submit(rows(generator, f"a {n}", max_new_tokens=200))) for n in range(SLOTS)
        ]
        stream = scheduler.stream(rows(generator, "b", max_new_tokens=200))
        await anext(stream)
        for task in long:
            task.cancel()
        await stream.aclose()
        await asyncio.gather(*long, return_exceptions=True)
        assert scheduler.waiting_tokens == 0
        assert scheduler.expected_wait_s() == 0.0
        completed = await scheduler.submit(rows(generator, "c", max_new_tokens=2))
        assert completed.written_tokens <= 2

    run(scenario)


def test_a_deadline_ends_a_request_and_frees_its_slot(generator: Any) -> None:
    async def scenario() -> None:
        scheduler = generator.scheduler()
        loop = asyncio.get_running_loop()
        with pytest.raises(DeadlineExceededError):
            await scheduler.submit(rows(generator, "a", max_new_tokens=240), loop.time() + 0.005)
        with pytest.raises(DeadlineExceededError):
            await scheduler.submit(rows(generator, "a"), loop.time() - 1)
        stream = scheduler.stream(rows(generator, "a", max_new_tokens=240), loop.time() + 0.005)
        with pytest.raises(DeadlineExceededError):
            async for _ in stream:
                pass
        assert scheduler.waiting_tokens == 0

    run(scenario)


def test_work_counts_every_answer_that_is_not_there_yet(generator: Any) -> None:
    async def scenario() -> list[float]:
        scheduler: SlotScheduler = generator.scheduler()
        await scheduler.submit(rows(generator, "a", max_new_tokens=8))
        work_s = [scheduler.work_s]
        for n in (1, 20):
            stream = scheduler.stream(rows(generator, *["The film was long"] * n, max_new_tokens=200))
            work_s.append(scheduler.work_s)
            await stream.aclose()
        return work_s

    idle_s, one_s, twenty_s = run(scenario)
    assert idle_s == 0.0
    assert twenty_s > 10 * one_s > 0.0


def test_many_short_chats_without_a_budget_are_not_refused_for_what_they_might_write(generator: Any) -> None:
    """Each may fill the window; what counts is what it reads, and how long answers are lately."""

    async def scenario() -> list[Any]:
        scheduler = generator.scheduler(queue=QueueConfig(max_queue_tokens=400))
        waiting = [
            asyncio.create_task(scheduler.submit(rows(generator, "hi", max_new_tokens=200, stop=["e", "a", "o", "i"])))
            for _ in range(40)
        ]
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    assert not [one for one in run(scenario) if isinstance(one, Exception)]


def test_the_queue_is_bounded_in_tokens_that_wait_and_in_seconds_of_work(generator: Any) -> None:
    async def scenario() -> None:
        scheduler = generator.scheduler(queue=QueueConfig(max_queue_tokens=40))
        with pytest.raises(InputTooLongError, match="tokens; allowed: 40, all that the queue holds"):
            await scheduler.submit(rows(generator, *["The film was long"] * 30))
        waiting = [
            asyncio.create_task(scheduler.submit(rows(generator, f"a {n}", max_new_tokens=100))) for n in range(99)
        ]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        refused = [one for one in outcomes if isinstance(one, OverloadedError)]
        assert refused
        assert str(refused[0]).startswith("the queue is full: ")
        assert len(refused) < 99
        assert (scheduler.waiting_rows, scheduler.waiting_tokens) == (0, 0)
        scheduler = generator.scheduler(queue=QueueConfig(max_queue_rows=8))
        with pytest.raises(InputTooLongError, match="the request has 9 rows; allowed: 8"):
            await scheduler.submit(rows(generator, *"abcdefghi"))
        scheduler = generator.scheduler(queue=QueueConfig(max_queue_s=0.0001))
        await scheduler.submit(rows(generator, "warm"))
        waiting = [
            asyncio.create_task(scheduler.submit(rows(generator, f"a {n}", max_new_tokens=50))) for n in range(30)
        ]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert any("s of work go before this request" in str(one) for one in outcomes)

    run(scenario)


def test_bulk_requests_wait_until_no_others_do(generator: Any) -> None:
    """All slots are taken when both come, the bulk requests first."""
    ended: list[str] = []

    async def scenario() -> None:
        scheduler = generator.scheduler()

        async def ask(name: str, length: int, bulk: bool) -> None:
            await scheduler.submit(rows(generator, name, max_new_tokens=length), bulk=bulk)
            ended.append(name)

        running = [asyncio.create_task(ask(f"running {n}", 60, False)) for n in range(SLOTS)]
        # Until the engine is busy and knows what a token takes.
        while not scheduler.expected_wait_s(rows(generator, "a")):
            assert not all(one.done() for one in running)
            await asyncio.sleep(0.001)
        bulk = [asyncio.create_task(ask(f"bulk {n}", 5, True)) for n in range(6)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(ask(f"other {n}", 30, False)) for n in range(6)]
        await asyncio.sleep(0)
        assert scheduler.expected_wait_s(rows(generator, "a"), bulk=True) > scheduler.expected_wait_s(
            rows(generator, "a")
        )
        await asyncio.gather(*running, *bulk, *others)
        assert (scheduler.waiting_rows, scheduler.waiting_tokens, scheduler.is_busy) == (0, 0, False)

    run(scenario)
    first_bulk = next(place for place, name in enumerate(ended) if name.startswith("bulk"))
    # When the first bulk request starts, no other one waits; at most those in the other slots have not ended.
    assert sum(name.startswith("other") for name in ended[:first_bulk]) >= 6 - (SLOTS - 1)


def test_long_bulk_answers_are_paused_for_others(generator: Any) -> None:
    if generator.generator._engine.__class__ is PlainEngine:
        pytest.skip("an engine without slots pauses nothing")
    ended: list[str] = []

    async def scenario() -> None:
        scheduler = generator.scheduler()

        async def ask(name: str, length: int, bulk: bool) -> None:
            await scheduler.submit(rows(generator, name, max_new_tokens=length), bulk=bulk)
            ended.append(name)

        bulk = [asyncio.create_task(ask(f"bulk {n}", 200, True)) for n in range(SLOTS)]
        while scheduler.waiting_rows or not scheduler.is_busy:  # noqa: ASYNC110  (the decode thread changes it)
            await asyncio.sleep(0.001)
        # More than one turn: fair shares alone would pause them in between.
        others = [asyncio.create_task(ask(f"other {n}", 100, False)) for n in range(SLOTS)]
        await asyncio.gather(*bulk, *others)

    run(scenario)
    assert [name.split()[0] for name in ended] == ["other"] * SLOTS + ["bulk"] * SLOTS


def test_a_request_that_fails_fails_alone(generator: Any) -> None:
    def broken(_ids: Any) -> bool:
        raise ZeroDivisionError("a stop")

    def stops(_ids: Any) -> bool:
        return next(iter([]))

    async def scenario() -> list[Any]:
        scheduler = generator.scheduler()
        good = rows(generator, "The film", max_new_tokens=30)
        bad = [[replace(rows(generator, "a")[0], stop=stop)] for stop in (broken, stops)]
        return list(await asyncio.gather(*map(scheduler.submit, [good, *bad]), return_exceptions=True))

    good, failed, stopped = run(scenario)
    assert good.outputs
    assert isinstance(failed, ZeroDivisionError)
    assert isinstance(stopped, GenerationError | RuntimeError)


def test_drain_lets_what_is_inside_end_and_refuses_what_comes(generator: Any) -> None:
    async def scenario() -> None:
        scheduler = generator.scheduler()
        inside = asyncio.create_task(scheduler.submit(rows(generator, "a", max_new_tokens=60)))
        await asyncio.sleep(0)
        draining = asyncio.create_task(scheduler.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="shutting down"):
            await scheduler.submit(rows(generator, "a"))
        assert (await inside).written_tokens == 60
        await draining

        other = generator.scheduler()
        left = asyncio.create_task(other.submit(rows(generator, "a", max_new_tokens=240)))
        stream = other.stream(rows(generator, "b", max_new_tokens=240))
        await anext(stream)
        await other.drain(0.001)
        with pytest.raises(OverloadedError, match="shutting down"):
            await left
        with pytest.raises(OverloadedError, match="shutting down"):
            async for _ in stream:
                pass

    run(scenario)


def test_what_is_reported_of_a_sequence_are_prompt_and_written_tokens(generator: Any) -> None:
    reports: list[BatchReport] = []
    (row,) = rows(generator, "The film", max_new_tokens=5)

    async def scenario() -> None:
        await generator.scheduler(on_batch=reports.append).submit([row])

    run(scenario)
    (report,) = reports
    assert (report.rows, report.read_tokens, report.written_tokens) == (1, len(row.prompt), 5)
