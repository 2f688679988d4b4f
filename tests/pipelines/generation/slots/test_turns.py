"""Turns: when all slots are taken by long answers, a sequence that had its turn is paused for a request that waits."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import numpy as np
import pytest

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.engine import Event, Job, Share
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.generation.slots.seq2seq import Seq2SeqSessions, Seq2SeqSlots
from pipelines.generation.slots.slot_model import SlotModel
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, changes_of, task_of
from tests.pipelines.generation.slots.recording import RecordingDecoder, logits_of
from tests.pipelines.generation.slots.test_rounds import wait_for
from tests.pipelines.generation.slots.test_slot_engine import assert_same, idle, random_request

WINDOW, TURN, CHUNK_TOKENS = 200, 6, 16
Opened = Callable[..., tuple[SlotEngine, RecordingDecoder]]


def model_of(artifact: ModelArtifact) -> SlotModel:
    if "decoder" in artifact.manifest.graphs:
        return Seq2SeqSlots(Seq2SeqSessions.of(artifact, SessionConfig()), SLOTS, 60, 64)
    return CausalSlots(InferenceSession(artifact.graph("model"), SessionConfig()), SLOTS, WINDOW)


@pytest.fixture
def opened(exported: Callable[..., Path]) -> Opened:
    """`opened(turn_tokens, architecture, precision)`: an engine that has held nothing yet, and its model."""

    def make(
        turn_tokens: int = TURN, architecture: str = "llama", precision: str = "fp32", **turns: Any
    ) -> tuple[SlotEngine, RecordingDecoder]:
        folder = exported(architecture, task_of(architecture), precision, **changes_of(architecture))
        model = RecordingDecoder(model_of(ModelArtifact.open(folder)))
        return SlotEngine(model, CHUNK_TOKENS, SlotsConfig(turn_tokens=turn_tokens, **turns)), model

    return make


def greedy(prompt: tuple[int, ...], max_new_tokens: int, **changes: Any) -> DecodeRequest:
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=(1,), **changes)
    return DecodeRequest(prompt, config.for_prompt(len(prompt), WINDOW))


def together(engine: SlotEngine, requests: Sequence[DecodeRequest]) -> list[Any]:
    """Answers, or errors, of requests that come in one round, each a caller's of its own."""
    inboxes: list[SimpleQueue[Any]] = [SimpleQueue() for _ in requests]
    engine.start(*(Job(request, inbox.put) for request, inbox in zip(requests, inboxes, strict=True)))
    return [next(filter(is_last, iter(inbox.get, None))) for inbox in inboxes]


def is_last(event: Any) -> bool:
    return isinstance(event, Answer | Exception)


def test_a_short_request_does_not_wait_for_the_end_of_long_ones_in_all_slots(opened: Opened) -> None:
    engine, model = opened()
    came_at: list[int] = []
    ended_at: list[int] = []
    short = greedy((9, 8, 7), 3)

    def ends(event: Event) -> None:
        if isinstance(event, Answer):
            ended_at.append(len(model.reads))

    def comes(reads: int) -> bool:
        """In the decode thread, once all slots are taken."""
        if not came_at and reads > 2 * SLOTS + TURN and engine.free_slots == 0:
            came_at.append(reads)
            engine.start(Job(short, ends))
        return False

    model.fails = comes
    inboxes: list[SimpleQueue[Event]] = [SimpleQueue() for _ in range(SLOTS)]
    engine.start(*(Job(greedy((5 + n, 6), 150), inbox.put) for n, inbox in enumerate(inboxes)))
    answers = [next(event for event in iter(inbox.get, None) if isinstance(event, Answer)) for inbox in inboxes]
    assert ended_at[0] - came_at[0] <= TURN + 6
    assert ended_at[0] < 150
    assert len(model.saved) >= 1
    for n, answer in enumerate(answers):
        assert_same(answer, opened(10_000)[0].generate(greedy((5 + n, 6), 150)))
    assert idle(engine)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_pause_changes_no_bit_of_an_answer(opened: Opened, precision: str) -> None:
    """More long answers than slots, in turns of two tokens; to the last bit of a logprob."""
    engine, model = opened(2, precision=precision, max_paused=100)
    requests = [replace(greedy((5 + n, 6, 7), 20), logprobs=True, top_tokens=2) for n in range(3 * SLOTS)]
    answers = together(engine, requests)
    assert len(model.saved) > 5
    alone, untouched = opened(10_000, precision=precision)
    for request, answer in zip(requests, answers, strict=True):
        assert answer == alone.generate(request)
    assert untouched.saved == []
    assert idle(engine)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bart", "t5"])
def test_whatever_is_decoded_in_turns_is_answered_as_alone(architecture: str, opened: Opened) -> None:
    """Greedy, samples, beams, stops, seeds, of many callers at once."""
    random = Random(architecture)
    engine, model = opened(1, architecture, max_paused=100)
    requests = [random_request(random) for _ in range(40)]
    if architecture in ("bart", "t5"):
        requests = [replace(one, prompt=(0,), source=one.prompt, prompt_logprobs=False) for one in requests]
        requests = [replace(one, config=replace(one.config, max_length=20, min_length=0)) for one in requests]
    answers = together(engine, requests)
    assert model.saved
    alone, _ = opened(10_000, architecture)
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, alone.generate(request))
    assert idle(engine)


def test_no_more_sequences_are_paused_than_allowed(opened: Opened) -> None:
    engine, _ = opened(1, max_paused=2)
    most = 0

    def counted(_ids: Any) -> bool:
        nonlocal most
        most = max(most, sum(bool(one.parked) for one in engine._waiting))
        return False

    requests = [replace(greedy((5 + n,), 12), stop=counted) for n in range(4 * SLOTS)]
    answers = together(engine, requests)
    assert 0 < most <= 2
    assert all(len(answer.generations[0].steps) == 12 for answer in answers)


def test_a_request_of_many_prompts_takes_turns_with_one_of_a_single_prompt(opened: Opened) -> None:
    engine, model = opened(10_000)
    ended: list[str] = []

    def named(name: str) -> Callable[[Any], bool]:
        def stop(ids: Any) -> bool:
            if len(ids) == 1 + 4:
                ended.append(name)
            return False

        return stop

    many = [replace(greedy((5 + n,), 4), stop=named("many")) for n in range(40)]
    with ThreadPoolExecutor(2) as callers:

        def comes(reads: int) -> bool:
            """At the fifth read, in the decode thread."""
            if reads == 5:
                waiting = engine.waiting
                callers.submit(engine.generate, replace(greedy((7,), 4), stop=named("single")))
                wait_for(lambda: engine.waiting == waiting + 1)
            return False

        model.fails = comes
        callers.submit(engine.generate_all, many).result()
    assert ended.index("single") <= 3 * SLOTS


@pytest.mark.parametrize("rows", [[4] * 24, [100]])
def test_whoever_had_a_turn_is_not_starved_by_a_stream_of_short_requests(opened: Opened, rows: list[int]) -> None:
    """A list, or a long answer, beside short requests of which twice as many as slots are always there."""
    engine, model = opened()
    short, ended = greedy((9, 8), 4), Counter[str]()

    def told(name: str) -> Callable[[Event], None]:
        return lambda event: ended.update([name] if isinstance(event, Answer) else [])

    def comes(reads: int) -> bool:
        if ended["rows"] < len(rows) and reads < 4000:
            while ended["started"] - ended["short"] < 2 * SLOTS:
                ended["started"] += 1
                engine.start(Job(short, told("short")))
        return False

    model.fails = comes
    share = Share()
    engine.start(*(Job(greedy((5 + n,), tokens), told("rows"), share) for n, tokens in enumerate(rows)))
    wait_for(lambda: idle(engine))

    assert ended["rows"] == len(rows)
    # Its fair part of all tokens is one of 2 * SLOTS + 1; a turn more or less for each row.
    assert ended["short"] * 4 <= 2 * (2 * SLOTS + 1) * sum(rows)


def test_a_round_asks_no_more_of_a_long_list_that_waits_than_of_a_short_one(opened: Opened) -> None:
    engine, model = opened()
    asked = 0

    def here() -> bool:
        nonlocal asked
        asked += 1
        return False

    def asked_by_round(rows: int) -> float:
        nonlocal asked
        asked, read = 0, len(model.reads)
        share, ended = Share(), Counter[bool]()
        tell = lambda event: ended.update([isinstance(event, Answer)])  # noqa: E731
        engine.start(*(Job(greedy((5 + n % 9,), 2), tell, share, here) for n in range(rows)))
        wait_for(lambda: ended[True] == rows)
        return asked / (len(model.reads) - read)

    assert asked_by_round(1000) < 2 * asked_by_round(8 * SLOTS)


def test_a_pause_that_fails_fails_its_own_request(opened: Opened) -> None:
    engine, model = opened(1)
    failing = threading.Event()

    def fail(slot: int, tokens: int) -> Any:
        if not failing.is_set():
            failing.set()
            raise FloatingPointError("no memory")
        return save(slot, tokens)

    save, model.save = model.save, fail  # type: ignore[method-assign]
    requests = [greedy((5 + n,), 30) for n in range(2 * SLOTS)]

    answers = together(engine, requests)
    failed = [str(one) for one in answers if isinstance(one, FloatingPointError)]
    assert failed == ["no memory"]
    assert idle(engine)


@pytest.mark.parametrize("architecture", ["llama", "bart"])
def test_what_a_slot_holds_is_the_same_in_another_slot(architecture: str, exported: Callable[..., Path]) -> None:
    model = model_of(ModelArtifact.open(exported(architecture, task_of(architecture), **changes_of(architecture))))
    prompt = np.asarray([[3, 4, 5, 6]])
    model.open({0: (7, 8, 9), 2: (9,)})
    logits_of(model, 0, prompt, np.zeros(1, np.int64), np.asarray([3]))
    saved = model.save(0, 4)
    expected = logits_of(model, 0, np.asarray([[7]]), np.asarray([4]), np.zeros(1, np.int64))
    logits_of(model, 0, prompt[:, ::-1].copy(), np.zeros(1, np.int64), np.asarray([3]))
    model.restore(2, saved)
    assert np.array_equal(logits_of(model, 2, np.asarray([[7]]), np.asarray([4]), np.zeros(1, np.int64)), expected)


def test_what_fails_after_a_chunk_was_read_fails_its_own_request(opened: Opened) -> None:
    engine, _ = opened()
    append, calls = engine._table.append, [0]

    def fail(slot: int, ids: np.ndarray) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise FloatingPointError("no room")
        append(slot, ids)

    engine._table.append = fail  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as callers:
        good = callers.submit(engine.generate, greedy((5, 6), 40))
        wait_for(lambda: calls[0] == 1)
        with pytest.raises(FloatingPointError, match="no room"):
            callers.submit(engine.generate, greedy((7, 8), 4)).result(timeout=20)
        assert len(good.result(timeout=20).generations[0].steps) == 40
    assert idle(engine)


def test_without_a_prefix_cache_every_prompt_is_read_whole(opened: Opened) -> None:
    engine, model = opened(prefix_cache=False)
    prompt = tuple(range(5, 35))
    answers = [engine.generate(greedy(prompt, 3)) for _ in range(2)]
    assert answers[0] == answers[1]
    assert model.prompt_tokens == 2 * len(prompt)
    samples = greedy(prompt, 3, do_sample=True, num_return_sequences=3)
    assert len(engine.generate(samples).generations) == 3
    assert model.prompt_tokens == 3 * len(prompt)


@pytest.mark.parametrize("architecture", ["llama", "bart"])
def test_a_full_slot_between_others_is_not_written_beyond_its_end(
    architecture: str, exported: Callable[..., Path]
) -> None:
    model = model_of(ModelArtifact.open(exported(architecture, task_of(architecture), **changes_of(architecture))))
    model.open({0: (7, 8, 9), 1: (9,)})
    one, last = np.zeros(1, np.int64), np.asarray([model.max_tokens])
    ids = np.asarray([[5]] * 2)
    logits_of(model, 0, ids, np.zeros(2, np.int64), one)
    neighbour = model.save(1, 1)
    logits_of(model, 0, ids[:1], last, one)
    again = model.save(1, 1)
    for saved, now in zip(contents(neighbour), contents(again), strict=True):
        assert np.array_equal(saved, now)


def contents(saved: Any) -> list[np.ndarray]:
    parts = [saved] if isinstance(saved, dict) else [saved.own, saved.cross, saved.ends]
    return [array for part in parts for array in part.values()]
