"""What a round of the slot engine costs those who wait for it, counted in reads of the decoder; and what goes wrong."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS
from tests.pipelines.generation.slots.recording import RecordingDecoder, broken_after
from tests.pipelines.generation.slots.test_slot_engine import assert_same, idle, random_request

CHUNK_TOKENS = 8
WINDOW = 200


@pytest.fixture
def recorded(exported: Callable[..., Path]) -> tuple[SlotEngine, RecordingDecoder]:
    session = InferenceSession(ModelArtifact.open(exported("llama", "text-generation")).graph("model"), SessionConfig())
    decoder = RecordingDecoder(CausalSlots(session, SLOTS, WINDOW))
    return SlotEngine(decoder, CHUNK_TOKENS), decoder


def greedy(prompt: Sequence[int], max_new_tokens: int) -> DecodeRequest:
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=(1,))
    return DecodeRequest(tuple(prompt), config.for_prompt(len(prompt), WINDOW))


def test_a_stream_waits_for_one_chunk_at_most_however_many_prompts_come(
    recorded: tuple[SlotEngine, RecordingDecoder],
) -> None:
    engine, decoder = recorded
    random = Random(1)
    prompts = [[random.randrange(4, 300) for _ in range(random.randint(1, 60))] for _ in range(12)]
    engine.generate_all([greedy([5], 120), *(greedy(prompt, 3) for prompt in prompts)])
    steps = [place for place, (_, tokens) in enumerate(decoder.reads) if tokens == 1]
    between = [decoder.reads[one + 1 : other] for one, other in pairwise(steps)]
    assert max(sum(rows * tokens for rows, tokens in reads) for reads in between) == CHUNK_TOKENS
    assert sum(len(reads) > 1 or any(rows > 1 for rows, _ in reads) for reads in between) > 0  # prompts share a chunk


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3])
def test_chunks_may_be_as_small_as_they_are_allowed_to_be(
    chunk_tokens: int, recorded: tuple[SlotEngine, RecordingDecoder], engine: Callable[[str], PlainEngine]
) -> None:
    _, decoder = recorded
    slots = SlotEngine(decoder, chunk_tokens)
    requests = [greedy(range(5 * n, 5 * n + n), 4) for n in range(1, 8)]
    with ThreadPoolExecutor(1) as callers:
        answers = callers.submit(slots.generate_all, requests).result(timeout=60)
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, engine("llama").generate(request))
    assert min(tokens for _, tokens in decoder.reads) == 1
    assert idle(slots)


def test_a_stream_waits_for_few_sources_at_once_too(recorded: tuple[SlotEngine, RecordingDecoder]) -> None:
    """What an encoder reads counts like a prompt: of sources of five tokens, two begin in a round of eight."""
    engine, decoder = recorded
    sources = [replace(greedy([5], 3), source=tuple(range(n, n + 5))) for n in range(10)]
    engine.generate_all([greedy([5], 60), *sources])
    rounds = Counter(reads for reads, tokens in decoder.opened if tokens)
    assert sum(rounds.values()) == 10
    assert max(rounds.values()) == 2
    assert idle(engine)


def test_the_first_token_of_a_short_prompt_comes_within_three_chunks_of_a_long_one(
    recorded: tuple[SlotEngine, RecordingDecoder],
) -> None:
    """It comes while the long one, of 24 chunks, is read."""
    engine, decoder = recorded
    came: list[Future[Answer]] = []
    with ThreadPoolExecutor(2) as callers:

        def comes(reads: int) -> bool:
            if reads == 4:
                came.append(callers.submit(engine.generate, replace(greedy([7, 8, 9], 1), stop=counted)))
                wait_for(lambda: engine.waiting == 1)
            return False

        def counted(_ids: Sequence[int]) -> bool:
            came_at.append(len(decoder.reads))
            return False

        came_at: list[int] = []
        decoder.fails = comes
        engine.generate(greedy(range(5, 197), 1))
        came[0].result()
    assert came_at[0] - 4 <= 3


def test_those_who_are_left_move_together_and_go_on_as_if_nothing_had_been(
    recorded: tuple[SlotEngine, RecordingDecoder],
) -> None:
    """The first and the last of four stay: a step reads two rows then, not four."""
    engine, decoder = recorded
    requests = [greedy(range(5 + n, 20 + n), answer) for n, answer in enumerate((60, 3, 3, 60))]
    together = engine.generate_all(requests)
    rows = [rows for rows, tokens in decoder.reads if tokens == 1]
    assert max(rows[-40:]) <= 2
    assert together == [engine.generate(request) for request in requests]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise TimeoutError


def test_a_reader_that_is_slow_holds_nobody_up(recorded: tuple[SlotEngine, RecordingDecoder]) -> None:
    engine, decoder = recorded
    stream = engine.stream(greedy([5], 60))
    first = next(stream)
    engine.generate(greedy([6, 7], 100))  # the engine went on with both meanwhile
    assert idle(engine)
    reads = len(decoder.reads)
    steps = [first, *stream]
    assert len(steps) == 60
    assert steps[-1].finish_reason == "length"
    assert len(decoder.reads) == reads


def test_a_reader_that_leaves_frees_its_slot_at_the_next_step(
    recorded: tuple[SlotEngine, RecordingDecoder],
) -> None:
    engine, decoder = recorded
    stream = engine.stream(greedy([5], 150))
    left_at: list[int] = []

    def leaves(reads: int) -> bool:
        if reads == 10:
            wait_for(lambda: left_at != [])
        return False

    decoder.fails = leaves
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    left_at.append(len(decoder.reads))
    assert idle(engine)
    assert len(decoder.reads) - left_at[0] <= 1


def test_what_fails_between_steps_fails_those_who_are_there_and_nobody_hangs(
    recorded: tuple[SlotEngine, RecordingDecoder],
) -> None:
    """A caller whose own question fails: whom it hits is not known, but the engine goes on."""
    engine, _ = recorded
    with pytest.raises(ZeroDivisionError, match="who knows"):
        engine.generate(greedy([5], 50), broken_after(3))
    assert idle(engine)
    assert len(engine.generate(greedy([5], 4)).generations[0].steps) == 4


def test_whatever_comes_goes_and_fails_the_others_are_answered_as_alone_and_every_slot_is_free_again(
    recorded: tuple[SlotEngine, RecordingDecoder], engine: Callable[[str], PlainEngine]
) -> None:
    """Greedy, samples, beams, stops, seeds; readers that leave; and a decoder that fails now and then."""
    random = Random(7)
    slots, decoder = recorded
    decoder.fails = lambda reads: reads % 97 == 0
    decoder.copy_fails = lambda copies: copies % 31 == 0
    requests = [random_request(random) for _ in range(80)]

    def answered(request: DecodeRequest) -> Answer | str:
        patience = request.seed % 40 if request.seed % 5 == 0 else 10_000
        asked = [0]

        def cancelled() -> bool:
            asked[0] += 1
            return asked[0] > patience

        try:
            answer = slots.generate(request, cancelled)
        except FloatingPointError as error:
            return str(error)
        return "left" if asked[0] > patience else answer

    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(answered, requests))
    assert idle(slots)
    whole = [(request, answer) for request, answer in zip(requests, answers, strict=True) if isinstance(answer, Answer)]
    assert "left" in answers
    assert "the decoder failed" in answers
    assert len(whole) > 40
    for request, answer in whole:
        assert_same(answer, engine("llama").generate(request))
