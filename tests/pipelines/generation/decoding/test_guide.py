"""Guided sequences in both engines, with a grammar that needs no library: tokens whose numbers rise."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from pipelines.errors import InvalidInputError
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.guide import Guide
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.engine import Event, Job
from pipelines.generation.open import open_engine
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW

VOCABULARY, EOS = 439, 2
LENGTH = 12


class Counting:
    """Tokens above 100 that rise by at most `step`, LENGTH of them; `breaks_at` is where its guides fail."""

    def __init__(self, step: int, breaks_at: int | None = None, vocabulary: int = VOCABULARY) -> None:
        self.step, self.breaks_at, self.vocabulary = step, breaks_at, vocabulary

    def start(self) -> "CountingGuide":
        return CountingGuide(self)

    def holds(self, tokens: list[int]) -> bool:
        *some, last = tokens
        rises = all(0 < after - before <= self.step for before, after in pairwise([100, *some]))
        return rises and len(some) == LENGTH and last == EOS


class CountingGuide(Guide):
    def __init__(self, grammar: Counting) -> None:
        super().__init__()
        self._grammar, self._taken = grammar, [100]

    def _forbidden(self) -> np.ndarray:
        if len(self._taken) == self._grammar.breaks_at:
            raise InvalidInputError("the grammar takes too much")
        forbidden = np.ones(self._grammar.vocabulary, bool)
        last = self._taken[-1]
        forbidden[range(last + 1, last + 1 + self._grammar.step) if len(self._taken) <= LENGTH else [EOS]] = False
        return forbidden

    def _append(self, token: int) -> None:
        self._taken.append(token)


def request(number: int, grammar: Counting | None, **changes: object) -> DecodeRequest:
    prompt = tuple(range(50, 55 + number % 7))
    settings = {"max_new_tokens": 30, "eos_token_id": (EOS,), "temperature": 1.5, "top_k": 0} | changes
    config = GenerationConfig(**settings).for_prompt(len(prompt), WINDOW)  # type: ignore[arg-type]
    return DecodeRequest(prompt, config, seed=number, grammar=grammar)


@pytest.fixture
def pausing(exported: Callable[..., Path]) -> SlotEngine:
    artifact = ModelArtifact.open(exported("qwen2", "text-generation"))
    turns = SlotsConfig(2, WINDOW, prefill_chunk_tokens=5, turn_tokens=3)
    opened = open_engine(artifact, SessionConfig(), turns)
    assert isinstance(opened, SlotEngine)
    return opened


@pytest.fixture
def on_device(exported: Callable[..., Path]) -> SlotEngine:
    """Logits that stay where ONNX Runtime alone reaches them: a guided row looks at the best of them first."""
    session = InferenceSession(ModelArtifact.open(exported("qwen2", "text-generation")).graph("model"), SessionConfig())
    return SlotEngine(CausalSlots(session, SLOTS, WINDOW, on_device=True), 5)


def last(inbox: "SimpleQueue[Event]") -> Event:
    while not isinstance(event := inbox.get(timeout=60), Answer | Exception):
        pass
    return event


def tokens(answer: Answer) -> list[list[int]]:
    return [generation.token_ids for generation in answer.generations]


def test_every_sequence_of_a_crowd_keeps_its_own_grammar_and_both_engines_agree(
    slot_engine: Callable[[str], SlotEngine],
    engine: Callable[[str], PlainEngine],
    pausing: SlotEngine,
    on_device: SlotEngine,
) -> None:
    grammars = [None if number % 4 == 3 else Counting(number + 1) for number in range(3 * SLOTS)]
    requests = [
        request(number, grammar, do_sample=number % 3 > 0, num_return_sequences=1 + 2 * (number % 3 > 1))
        for number, grammar in enumerate(grammars)
    ]

    answers = slot_engine("qwen2").generate_all(requests)

    for grammar, answer in zip(grammars, answers, strict=True):
        assert grammar is None or all(grammar.holds(generation.token_ids) for generation in answer.generations)
    assert any(answer != again for answer, again in pairwise(answers))
    for other in (engine("qwen2"), pausing, on_device):
        assert [tokens(answer) for answer in other.generate_all(requests)] == [tokens(answer) for answer in answers]


def test_a_grammar_bends_the_choice_after_penalties_and_before_sampling(
    slot_engine: Callable[[str], SlotEngine],
) -> None:
    grammar = Counting(40)
    settings = {"repetition_penalty": 1.5, "presence_penalty": 1.0, "do_sample": True, "top_k": 3, "top_p": 0.9}

    answers = [slot_engine("qwen2").generate(request(seed, grammar, **settings)) for seed in range(6)]

    assert all(grammar.holds(answer.generations[0].token_ids) for answer in answers)
    assert len({tuple(answer.generations[0].token_ids) for answer in answers}) > 1


@pytest.mark.parametrize("kind", ["slots", "plain"])
def test_a_guide_that_fails_ends_its_own_request_only(
    slot_engine: Callable[[str], SlotEngine], engine: Callable[[str], PlainEngine], kind: str
) -> None:
    asked: SlotEngine | PlainEngine = (slot_engine if kind == "slots" else engine)("qwen2")
    inboxes: list[SimpleQueue[Event]] = [SimpleQueue() for _ in range(4)]
    grammars = [Counting(5, breaks_at=4 if index == 1 else None) for index in range(4)]

    asked.start(*(Job(request(0, one), inbox.put) for one, inbox in zip(grammars, inboxes, strict=True)))
    outcomes = [last(inbox) for inbox in inboxes]

    assert [isinstance(outcome, InvalidInputError) for outcome in outcomes] == [False, True, False, False]
    for grammar, outcome in zip(grammars, outcomes, strict=True):
        assert not isinstance(outcome, Answer) or grammar.holds(outcome.generations[0].token_ids)


def test_beams_are_refused(slot_engine: Callable[[str], SlotEngine]) -> None:
    with pytest.raises(InvalidInputError, match=r"parameters.grammar is set with num_beams; allowed: without beams"):
        slot_engine("qwen2").generate(request(0, Counting(5), num_beams=2))
