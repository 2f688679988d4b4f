"""Prompt lookup: fewer steps, the same answers."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.decoding.test_guide import EOS, Counting
from tests.pipelines.generation.slots.recording import RecordingDecoder
from tests.pipelines.generation.slots.test_slot_engine import assert_same, random_request

WINDOW = 200
VOCABULARIES = {"qwen2": 439, "gpt2": 437}
Opened = Callable[[str, int], tuple[SlotEngine, RecordingDecoder]]


@pytest.fixture
def opened(exported: Callable[..., Path]) -> Opened:
    def make(architecture: str, lookup_tokens: int) -> tuple[SlotEngine, RecordingDecoder]:
        artifact = ModelArtifact.open(exported(architecture, "text-generation"))
        session = InferenceSession(artifact.graph("model"), SessionConfig())
        model = RecordingDecoder(CausalSlots(session, 4, WINDOW))
        return SlotEngine(model, 16, SlotsConfig(lookup_tokens=lookup_tokens)), model

    return make


def greedy(prompt: tuple[int, ...], tokens: int, **changes: Any) -> DecodeRequest:
    grammar = changes.pop("grammar", None)
    config = GenerationConfig(max_new_tokens=tokens, eos_token_id=(EOS,), **changes).for_prompt(len(prompt), WINDOW)
    return DecodeRequest(prompt, config, grammar=grammar)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_an_answer_that_copies_takes_fewer_steps_and_is_the_same(opened: Opened, architecture: str) -> None:
    """The grammar makes a tiny model, whose weights are random, copy twelve tokens of its prompt."""
    request = greedy((*range(90, 130), 98, 99), 30, grammar=Counting(1, vocabulary=VOCABULARIES[architecture]))
    plain, one_by_one = opened(architecture, 0)
    looking, ahead = opened(architecture, 8)

    expected, answer = plain.generate(request), looking.generate(request)

    assert answer == expected
    prompt_reads = 3
    assert len(one_by_one.reads) - prompt_reads == 12
    assert len(ahead.reads) - prompt_reads <= 4
    assert max(tokens for _, tokens in ahead.reads[prompt_reads:]) == 9


@pytest.mark.parametrize("seed", range(6))
def test_any_request_is_answered_as_without(opened: Opened, seed: int) -> None:
    random = Random(seed)
    (plain, _), (looking, _) = opened("llama", 0), opened("llama", 5)
    for _ in range(12):
        request = random_request(random)
        assert_same(looking.generate(request), plain.generate(request))


def test_grammars_and_penalties_see_every_token_that_is_kept(opened: Opened) -> None:
    (plain, _), (looking, _) = opened("qwen2", 0), opened("qwen2", 6)
    rising = tuple(range(100, 130)) * 2
    for changes in ({"grammar": Counting(1)}, {"no_repeat_ngram_size": 2}, {"do_sample": True, "temperature": 0.3}):
        request = greedy(rising, 40, **changes)
        assert looking.generate(request) == plain.generate(request)


def test_sequences_that_share_steps_are_not_read_ahead(opened: Opened) -> None:
    looking, model = opened("llama", 8)
    requests = [greedy((50 + index, 51, 52), 40) for index in range(3)]
    plain, _ = opened("llama", 0)

    answers = looking.generate_all(requests)

    assert answers == plain.generate_all(requests)
    assert max(tokens for rows, tokens in model.reads if rows > 1 and tokens != 3) == 1


def test_an_answer_ends_where_its_slot_ends(opened: Opened) -> None:
    looking, _ = opened("llama", 30)

    answer = looking.generate(greedy((50, 51, 52), 197, suppress_tokens=(EOS,)))

    assert len(answer.generations[0].steps) == 197
    assert answer.generations[0].finish_reason == "length"


def test_an_error_of_the_model_ends_the_sequence_only(opened: Opened) -> None:
    looking, model = opened("llama", 8)
    model.fails = lambda _reads: model.reads[-1][1] == 9

    with pytest.raises(FloatingPointError):
        looking.generate(greedy((50, 51, 52), 150))
    model.fails = lambda _reads: False

    assert looking.generate(greedy((50, 51, 52), 5)).generations
