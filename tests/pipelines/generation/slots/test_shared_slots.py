"""What slots share: beams that go on from one past, samples of one prompt, and prompts that begin alike."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import InvalidInputError
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import CacheKey, DecodeRequest
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.engine import SlotEngine
from pipelines.generation.slots.slot_table import SlotTable
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW
from tests.pipelines.generation.plain.test_engine import BOUNDED, beams, constraints, ours, prompts, theirs
from tests.pipelines.generation.slots.recording import RecordingDecoder
from tests.pipelines.generation.slots.test_slot_engine import assert_same, idle, random_request
from tests.tiny_checkpoints import DECODERS

CHUNK_TOKENS = 16
Engines = Callable[[str], PlainEngine]
SlotEngines = Callable[[str], SlotEngine]
Recorded = Callable[[], tuple[SlotEngine, RecordingDecoder]]


@pytest.fixture(params=["fp32", "int8"])
def recorded(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Recorded:
    """`recorded()`: an engine that has held nothing yet, and its decoder, in either precision."""
    artifact = ModelArtifact.open(exported("llama", "text-generation", request.param))
    session = InferenceSession(artifact.graph("model"), SessionConfig())

    def make() -> tuple[SlotEngine, RecordingDecoder]:
        decoder = RecordingDecoder(CausalSlots(session, SLOTS, WINDOW))
        return SlotEngine(decoder, CHUNK_TOKENS), decoder

    return make


def greedy(prompt: tuple[int, ...], max_new_tokens: int = 8, **changes: Any) -> DecodeRequest:
    return DecodeRequest(
        prompt, GenerationConfig(max_new_tokens=max_new_tokens, **changes).for_prompt(len(prompt), WINDOW)
    )


@pytest.mark.parametrize("architecture", DECODERS)
@given(data=st.data())
@BOUNDED
def test_beams_in_slots_are_those_of_transformers_while_others_come_and_go(
    architecture: str, slot_engine: SlotEngines, torch_model: Callable[[str], Any], data: st.DataObject
) -> None:
    model, engine = torch_model(architecture), slot_engine(architecture)
    prompt, chosen = data.draw(prompts()), data.draw(constraints()) | data.draw(beams())
    chosen |= {"num_beams": min(chosen["num_beams"], SLOTS), "max_new_tokens": chosen["max_new_tokens"] + 2}
    if "forced_eos_token_id" in chosen:  # as in the tests of the engine: no ties
        chosen["forced_eos_token_id"] = chosen["forced_eos_token_id"][:1]
    chosen["num_return_sequences"] = data.draw(st.integers(1, chosen["num_beams"]))
    random = Random(str(chosen))
    with ThreadPoolExecutor(4) as callers:
        others = [callers.submit(engine.generate, random_request(random)) for _ in range(3)]
        answer = ours(engine, model, prompt, chosen)
        for other in others:
            other.result()
    assert [generation.token_ids for generation in answer.generations] == theirs(model, prompt, chosen)


def test_beams_copy_only_what_the_slot_of_a_beam_does_not_hold_yet(recorded: Recorded) -> None:
    engine, decoder = recorded()
    prompt = tuple(range(5, 65))
    engine.generate(greedy(prompt, 30, num_beams=SLOTS))
    (first, *later) = decoder.copies
    assert first == (SLOTS - 1, len(prompt))
    assert later
    # Beams that go on from one past part again and again: what a slot lacks of another's is their last tokens.
    assert all(tokens <= 30 for _, tokens in later)


def test_more_beams_than_slots_are_refused_with_the_limit(slot_engine: SlotEngines) -> None:
    with pytest.raises(InvalidInputError, match=r"num_beams is 5; allowed: at most 4, the model's slots"):
        slot_engine("gpt2").generate(greedy((5, 6), num_beams=5))


def test_a_search_that_needs_every_slot_is_not_overtaken_by_those_that_come_after_it(recorded: Recorded) -> None:
    engine, _ = recorded()
    order: list[str] = []

    def named(name: str) -> Callable[[Any], bool]:
        def stop(_ids: Any) -> bool:
            order.append(name)
            return False

        return stop

    before = [replace(greedy((5, 6), 12), stop=named("before")) for _ in range(2)]
    search = replace(greedy((7, 8), 4, num_beams=SLOTS), stop=named("search"))
    after = [replace(greedy((9,), 12), stop=named("after")) for _ in range(6)]
    engine.generate_all([*before, search, *after])
    assert order.index("search") > max(place for place, name in enumerate(order) if name == "before")
    assert order.index("after") > max(place for place, name in enumerate(order) if name == "search")
    assert idle(engine)


def test_samples_of_one_prompt_read_it_once_however_many_there_are(recorded: Recorded) -> None:
    prompt = tuple(range(5, 45))
    request = replace(greedy(prompt, 10, do_sample=True, num_return_sequences=3 * SLOTS), seed=3)
    engine, decoder = recorded()
    answer = engine.generate(request)
    assert decoder.prompt_tokens == len(prompt)
    assert len({tuple(generation.token_ids) for generation in answer.generations}) == 3 * SLOTS
    assert idle(engine)
    one_by_one = [recorded()[0].generate(replace(request, seed=3)).generations[number] for number in (0, 5, 11)]
    assert [answer.generations[number] for number in (0, 5, 11)] == one_by_one


def test_a_prompt_that_begins_like_an_earlier_one_is_read_from_where_they_differ(recorded: Recorded) -> None:
    """What was told before (a system prompt, a template) is copied, or goes on where it lies."""
    system = tuple(range(5, 53))
    requests = [greedy((*system, *(100 + 10 * n + place for place in range(n + 2)))) for n in range(SLOTS + 2)]
    engine, decoder = recorded()
    answers = [engine.generate(request) for request in requests]
    assert decoder.prompt_tokens <= len(system) + sum(len(request.prompt) - len(system) for request in requests)
    for request, answer in zip(requests, answers, strict=True):
        cold, untouched = recorded()
        assert answer == cold.generate(request)
        assert untouched.prompt_tokens == len(request.prompt)
    read = decoder.prompt_tokens
    assert engine.generate_all(requests) == answers
    assert decoder.prompt_tokens - read < len(system)


def test_a_conversation_reads_its_last_answer_again_and_nothing_before_it(recorded: Recorded) -> None:
    """What was read token by token, as it was made, is read as the prompt that it is now."""
    engine, decoder = recorded()
    said = tuple(range(5, 45))
    for _ in range(2):
        answer = engine.generate(greedy(said)).generations[0].token_ids
        read = decoder.prompt_tokens
        longer = greedy((*said, *answer, 7, 8, 9))
        again = engine.generate(longer)
        assert decoder.prompt_tokens - read == len(answer) + 3
        assert again == recorded()[0].generate(longer)
        said = longer.prompt


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_asked_before_changes_no_bit_of_an_answer(recorded: Recorded, data: st.DataObject) -> None:
    """Prompts that begin like others, or like answers to others, read in any chunks: to the last bit of a logprob."""
    text = data.draw(st.lists(st.integers(4, 300), min_size=70, max_size=70))
    lengths = data.draw(st.lists(st.integers(1, 70), min_size=2, max_size=6))
    engine, _ = recorded()
    requests = [replace(greedy(tuple(text[:length]), 3), logprobs=True) for length in lengths]
    answers = [engine.generate(request) for request in requests]
    longer = (*requests[0].prompt, *answers[0].generations[0].token_ids, 7)
    requests.append(replace(greedy(longer, 3), logprobs=True))
    for request, answer in zip(requests, [*answers, engine.generate(requests[-1])], strict=True):
        assert answer == recorded()[0].generate(request)


def test_logprobs_of_a_prompt_are_of_all_its_tokens_also_where_it_is_held(recorded: Recorded) -> None:
    request = replace(greedy(tuple(range(5, 45))), logprobs=True, prompt_logprobs=True)
    engine, _ = recorded()
    first = engine.generate(request)
    assert len(first.prompt_logprobs) == 39
    assert_same(engine.generate(request), first)


@given(st.data())
@settings(max_examples=60)
def test_a_slot_is_taken_once_and_is_said_to_hold_what_it_holds(data: st.DataObject) -> None:
    """Against lists of tokens that are kept beside it."""
    table = SlotTable(3, 20)
    lists: dict[int, list[int] | None] = dict.fromkeys(range(3))
    taken: list[int] = []
    for _ in range(data.draw(st.integers(1, 12))):
        wanted = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=8))
        shared = table.shared(CacheKey(), wanted)
        for slot, ids in lists.items():
            common = 0
            while ids is not None and common < min(len(ids), len(wanted)) and ids[common] == wanted[common]:
                common += 1
            assert shared[slot] == common
        if table.free and data.draw(st.booleans()):
            slot = table.take(shared)
            assert slot not in taken
            taken.append(slot)
            if lists[slot] is None:
                table.open(slot, CacheKey())
            table.cut(slot, int(shared[slot]))
            table.append(slot, np.asarray(wanted[shared[slot] :], np.int64))
            lists[slot] = wanted
        elif taken:
            table.give_back(taken.pop(data.draw(st.integers(0, len(taken) - 1))))
        assert table.free == 3 - len(taken)
