"""Encoder-decoders in slots: rows at different steps, with sources of very different lengths."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import pipelines
from pipelines.errors import InputTooLongError
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.open import open_engine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.generation.slots.seq2seq import Seq2SeqSessions, Seq2SeqSlots
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW, changes_of, task_of
from tests.pipelines.generation.slots.recording import RecordingDecoder, broken_after, logits_of
from tests.pipelines.generation.slots.test_rounds import wait_for
from tests.pipelines.generation.slots.test_slot_engine import Engines, SlotEngines, assert_same, idle
from tests.pipelines.generation.slots.test_slot_engine import random_request as prompted
from tests.tiny_checkpoints import DECODERS, ENCODER_DECODERS

START, LONGEST = 2, 128
LAST = np.zeros(1, np.int64)


def source(random: Random) -> tuple[int, ...]:
    return tuple(random.randrange(4, 300) for _ in range(random.choice([1, 2, 9, 30, LONGEST])))


def random_request(random: Random) -> DecodeRequest:
    """A source of 1 to 128 tokens and an answer of up to 24: greedy, samples or beams."""
    changes: dict[str, Any] = {"max_new_tokens": random.randint(1, 24)}
    kind = random.choice(["greedy", "samples", "beams"])
    if kind == "samples":
        changes |= {"do_sample": True, "temperature": 2.0, "num_return_sequences": random.choice([1, 3])}
    if kind == "beams":
        changes |= {"num_beams": random.randint(2, SLOTS), "no_repeat_ngram_size": random.choice([0, 2])}
    if random.random() < 0.5:
        changes |= {"eos_token_id": tuple(random.randrange(4, 300) for _ in range(20))}
    config = GenerationConfig(**changes).for_prompt(1, WINDOW)
    return DecodeRequest((START,), config, source=source(random), seed=random.getrandbits(32))


def answered_together(engine: SlotEngine, random: Random) -> list[tuple[DecodeRequest, Answer]]:
    requests = [random_request(random) for _ in range(30)]
    with ThreadPoolExecutor(10) as callers:
        return list(zip(requests, callers.map(engine.generate, requests), strict=True))


@pytest.fixture(params=[False, True], ids=["host", "device"])
def decoder(exported: Callable[..., Path], request: pytest.FixtureRequest) -> Callable[[str], Seq2SeqSlots]:
    """Slots in the host's memory, and where ONNX Runtime alone reaches them."""

    def make(architecture: str) -> Seq2SeqSlots:
        artifact = ModelArtifact.open(exported(architecture, "translation", **changes_of(architecture)))
        return Seq2SeqSlots(Seq2SeqSessions.of(artifact, SessionConfig()), SLOTS, 8, LONGEST, on_device=request.param)

    return make


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_requests_that_come_and_go_together_are_answered_as_each_of_them_alone(
    architecture: str, engine: Engines, slot_engine: SlotEngines
) -> None:
    for request, answer in answered_together(slot_engine(architecture), Random(architecture)):
        assert_same(answer, engine(architecture).generate(request))
    assert idle(slot_engine(architecture))


@pytest.mark.parametrize("architecture", ["llama", "marian"])
def test_each_session_of_a_generator_gives_memory_back(
    architecture: str, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, released = InferenceSession.release_memory, list[str]()

    def noted(session: InferenceSession, feeds: dict[str, np.ndarray]) -> None:
        released.append(session.name)
        release(session, feeds)

    monkeypatch.setattr(InferenceSession, "release_memory", noted)
    artifact = ModelArtifact.open(exported(architecture, task_of(architecture), **changes_of(architecture)))

    pipelines.load(artifact.path).release_memory()

    assert sorted(released) == sorted(artifact.graph(role).name for role in artifact.manifest.graphs)


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODER_DECODERS])
def test_what_slots_hold_stays_where_memory_is_given_back(
    architecture: str, engine: Engines, slot_engine: SlotEngines
) -> None:
    slots, random = slot_engine(architecture), Random(7)
    request = random_request(random) if architecture in ENCODER_DECODERS else prompted(random)
    slots.generate(request)
    held = slots.cache()

    slots.release_memory()

    assert slots.cache() == held
    with ThreadPoolExecutor(1) as callers:
        answer = callers.submit(slots.generate, request)
        slots.release_memory()  # beside a read
    assert_same(answer.result(), engine(architecture).generate(request))


@pytest.mark.parametrize("architecture", ["marian", "t5"])
def test_answers_in_eight_bits_do_not_depend_on_their_company_either(
    architecture: str, exported: Callable[..., Path]
) -> None:
    artifact = ModelArtifact.open(exported(architecture, "translation", "int8"))
    engine = open_engine(artifact, SessionConfig(), SlotsConfig(SLOTS, WINDOW))
    assert isinstance(engine, SlotEngine)
    for request, answer in answered_together(engine, Random(2)):
        assert_same(answer, engine.generate(request))


@pytest.mark.parametrize("chosen", [{"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_tokens_are_those_of_transformers_whatever_is_decoded_beside(
    architecture: str, chosen: dict[str, Any], slot_engine: SlotEngines, torch_model: Callable[[str], Any]
) -> None:
    import torch

    model, random = torch_model(architecture), Random(1)
    defaults = GenerationConfig.of_checkpoint(model.generation_config.to_dict(), {})
    config = replace(defaults, max_new_tokens=16, max_length=None, **chosen).for_prompt(1, WINDOW)
    start = model.generation_config.decoder_start_token_id
    sources = [source(random) for _ in range(6)]
    requests = [DecodeRequest((start,), config, source=one) for one in sources]
    for one, answer in zip(sources, slot_engine(architecture).generate_all(requests), strict=True):
        ids = torch.tensor([one])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, **chosen)
        for generation, tokens in zip(answer.generations, expected.tolist(), strict=True):
            ours = [start, *generation.token_ids]
            assert ours == tokens[: len(ours)]
            # Beams are padded with the end of sequence where padding is token 0.
            assert set(tokens[len(ours) :]) <= {model.config.pad_token_id, model.config.eos_token_id}


def test_who_leaves_frees_the_slots_for_who_waits(slot_engine: SlotEngines, engine: Engines) -> None:
    config = GenerationConfig(max_new_tokens=60).for_prompt(1, WINDOW)
    requests = [DecodeRequest((START,), config, source=(5 + number, 9)) for number in range(3 * SLOTS)]
    streams = [slot_engine("bart").stream(request) for request in requests[:SLOTS]]
    first = [next(stream).token_id for stream in streams]
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    answers = slot_engine("bart").generate_all(requests)
    assert [answer.generations[0].token_ids[0] for answer in answers[:SLOTS]] == first
    assert_same(answers[-1], engine("bart").generate(requests[-1]))
    assert idle(slot_engine("bart"))


def test_a_source_that_no_slot_can_hold_is_refused_with_the_limit(slot_engine: SlotEngines) -> None:
    config = GenerationConfig(max_new_tokens=4).for_prompt(1, WINDOW)
    with pytest.raises(InputTooLongError, match="inputs has 129 tokens; allowed: at most 128"):
        slot_engine("marian").generate(DecodeRequest((START,), config, source=(5,) * (LONGEST + 1)))
    assert idle(slot_engine("marian"))


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_slots_that_change_places_go_on_with_their_tokens_and_their_sources(
    architecture: str, decoder: Callable[[str], Seq2SeqSlots]
) -> None:
    slots = decoder(architecture)
    assert not slots.open({0: (5, 6, 7), 1: (8,) * 50})
    logits_of(slots, 0, np.asarray([[START], [START]]), np.zeros(2, np.int64), LAST)
    expected = logits_of(slots, 0, np.asarray([[40], [41]]), np.ones(2, np.int64), LAST)
    slots.copy([0, 1], [1, 0], 1)
    swapped = logits_of(slots, 0, np.asarray([[41], [40]]), np.ones(2, np.int64), LAST)
    np.testing.assert_allclose(swapped, expected[::-1], atol=1e-5)


def test_tokens_read_at_once_give_the_logits_that_they_give_one_by_one(
    decoder: Callable[[str], Seq2SeqSlots],
) -> None:
    slots = decoder("t5")
    assert not slots.open({2: (5, 6, 7)})
    together = logits_of(slots, 2, np.asarray([[START, 40, 41]]), np.zeros(1, np.int64), np.asarray([0, 2]))
    one_by_one = [
        logits_of(slots, 2, np.asarray([[token]]), np.asarray([place]), LAST)[0, 0]
        for place, token in enumerate((START, 40, 41))
    ]
    np.testing.assert_allclose(together[0], [one_by_one[0], one_by_one[2]], atol=1e-5)


def test_sources_that_are_encoded_together_are_encoded_as_each_alone(
    decoder: Callable[[str], Seq2SeqSlots],
) -> None:
    slots, random = decoder("m2m_100"), Random(3)
    sources = [tuple(random.randrange(4, 300) for _ in range(n)) for n in (9, 2, 12, LONGEST)]
    prompts, lengths = np.full((SLOTS, 1), START), np.zeros(SLOTS, np.int64)
    alone = []
    for slot, one in enumerate(sources):
        assert not slots.open({slot: one})
        alone.append(logits_of(slots, slot, prompts[:1], lengths[:1], LAST)[0])
    assert not slots.open(dict(enumerate(sources)))
    np.testing.assert_allclose(logits_of(slots, 0, prompts, lengths, LAST), alone, atol=1e-5)


def test_slots_that_are_nobodys_may_be_empty_or_full(decoder: Callable[[str], Seq2SeqSlots]) -> None:
    slots = decoder("marian")
    assert not slots.open({1: (5, 6, 7)})
    alone = logits_of(slots, 1, np.asarray([[START]]), np.zeros(1, np.int64), LAST)
    lengths = np.asarray([0, 0, slots.max_tokens])
    beside = logits_of(slots, 0, np.full((3, 1), START), lengths, LAST)
    assert np.isfinite(beside).all()
    np.testing.assert_allclose(beside[1], alone[0], atol=1e-5)


def test_a_source_that_the_encoder_fails_on_fails_alone(decoder: Callable[[str], Seq2SeqSlots]) -> None:
    slots = decoder("bart")
    prompts, lengths = np.full((3, 1), START), np.zeros(3, np.int64)
    assert not slots.open({0: (5, 6, 7), 1: (9,), 2: (8, 9, 10)})
    alone = logits_of(slots, 0, prompts, lengths, LAST)
    failed = slots.open({0: (8, 9, 10), 1: (5, 100_000, 7), 2: (5, 6, 7)})
    assert [(slot, "out of data bounds" in str(error)) for slot, error in failed.items()] == [(1, True)]
    np.testing.assert_allclose(logits_of(slots, 0, prompts, lengths, LAST)[[2, 0]], alone[[0, 2]], atol=1e-5)


def test_requests_live_on_beside_one_whose_source_fails(slot_engine: SlotEngines, engine: Engines) -> None:
    config = GenerationConfig(max_new_tokens=12).for_prompt(1, WINDOW)
    good = [DecodeRequest((START,), config, source=(5 + number, 9)) for number in range(2 * SLOTS)]
    bad = [replace(request, source=(100_000, *request.source)) for request in good]

    def outcome(request: DecodeRequest) -> Answer | Exception:
        try:
            return slot_engine("bart").generate(request)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(good) + len(bad)) as callers:
        answers = list(callers.map(outcome, [request for pair in zip(good, bad, strict=True) for request in pair]))
    for request, answer in zip(good, answers[::2], strict=True):
        assert isinstance(answer, Answer)
        assert_same(answer, engine("bart").generate(request))
    assert all("out of data bounds" in str(error) for error in answers[1::2])
    assert idle(slot_engine("bart"))


def test_a_source_that_was_left_before_it_was_read_is_not_read_for_those_who_come_later(
    exported: Callable[..., Path], engine: Engines
) -> None:
    """It is admitted, and in the same breath a neighbour's question whether to go on fails all there are."""
    artifact = ModelArtifact.open(exported("bart", "translation", **changes_of("bart")))
    decoder = RecordingDecoder(Seq2SeqSlots(Seq2SeqSessions.of(artifact, SessionConfig()), SLOTS, WINDOW, LONGEST))
    slots = SlotEngine(decoder, prefill_chunk_tokens=LONGEST)
    good = DecodeRequest((START,), GenerationConfig(max_new_tokens=6).for_prompt(1, WINDOW), source=(5, 6))
    with ThreadPoolExecutor(3) as callers:

        def others_come(reads: int) -> bool:
            if reads == 2:
                outcomes.append(callers.submit(slots.generate, replace(good, source=(100_000,))))
                wait_for(lambda: slots.waiting == 1)
                outcomes.append(callers.submit(slots.generate, good, broken_after(1)))
                wait_for(lambda: slots.waiting == 2)
            return False

        outcomes: list[Future[Answer]] = []
        decoder.fails = others_come
        outcomes.append(callers.submit(slots.generate, good))
        wait_for(lambda: len(outcomes) == 3)
    assert [type(outcome.exception()) for outcome in outcomes] == [ZeroDivisionError] * 3
    assert_same(slots.generate(good), engine("bart").generate(good))
    assert [length for _, length in decoder.opened] == [2, 2]
