"""The slot engine against the engine that decodes one request after the other, whose oracle is transformers."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipelines.errors import InputTooLongError, InvalidInputError
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.open import open_engine
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW
from tests.tiny_checkpoints import DECODERS

Engines = Callable[[str], PlainEngine]
SlotEngines = Callable[[str], SlotEngine]


def random_request(random: Random) -> DecodeRequest:
    """A prompt of up to 30 tokens and an answer of up to 24: greedy, samples or beams, with and without constraints.

    Many prompts begin alike.
    """
    prompt = tuple(random.randrange(4, 300) for _ in range(random.randint(1, 30)))
    if random.random() < 0.5:
        prompt = (*range(50, 50 + random.choice([3, 12])), *prompt[: random.randint(0, 20)])
    changes: dict[str, Any] = {"max_new_tokens": random.randint(1, 24)}
    if random.random() < 0.5:
        changes |= {"do_sample": True, "num_return_sequences": random.choice([1, 1, 3])}
        changes |= {"temperature": random.choice([0.5, 1.0, 2.0]), "top_p": random.choice([0.6, 1.0])}
    elif random.random() < 0.4:
        beams = random.randint(2, SLOTS)
        changes |= {"num_beams": beams, "num_return_sequences": random.randint(1, beams)}
        changes |= {"early_stopping": random.choice([True, False, "never"]), "do_sample": random.random() < 0.3}
    if random.random() < 0.3:
        changes |= {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    if random.random() < 0.3:
        changes |= {"eos_token_id": tuple(random.randrange(4, 300) for _ in range(20))}
    config = GenerationConfig(**changes).for_prompt(len(prompt), WINDOW)
    logprobs = random.random() < 0.3
    return DecodeRequest(
        prompt,
        config,
        seed=random.getrandbits(32),
        stop=(lambda ids: ids[-1] % 7 == 0) if random.random() < 0.3 else None,
        logprobs=logprobs,
        top_tokens=2 if logprobs else 0,
        prompt_logprobs=logprobs,
    )


def assert_same(ours: Answer, alone: Answer) -> None:
    """Equal tokens and ends; logprobs as near as sums in another order are."""
    for generation, expected in zip(ours.generations, alone.generations, strict=True):
        assert generation.token_ids == expected.token_ids
        assert generation.finish_reason == expected.finish_reason
        for step, other in zip(generation.steps, expected.steps, strict=True):
            assert step.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert [token for token, _ in step.top] == [token for token, _ in other.top]
    assert list(ours.prompt_logprobs) == pytest.approx(list(alone.prompt_logprobs), abs=1e-3)


def idle(engine: SlotEngine) -> bool:
    """Whether every slot is free again; a cancelled sequence leaves at the next round."""
    for thread in threading.enumerate():
        if thread.name == "decode":
            thread.join()
    return engine.free_slots == engine.slots == SLOTS


@pytest.mark.parametrize("architecture", DECODERS)
def test_requests_that_come_and_go_together_are_answered_as_each_of_them_alone(
    architecture: str, engine: Engines, slot_engine: SlotEngines
) -> None:
    random = Random(architecture)
    requests = [random_request(random) for _ in range(40)]
    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(slot_engine(architecture).generate, requests))
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, engine(architecture).generate(request))
    assert idle(slot_engine(architecture))


def test_answers_in_eight_bits_do_not_depend_on_their_company_either(exported: Callable[..., Path]) -> None:
    artifact = ModelArtifact.open(exported("llama", "text-generation", "int8"))
    engine = open_engine(artifact, SessionConfig(), SlotsConfig(SLOTS, WINDOW))
    random = Random(2)
    requests = [random_request(random) for _ in range(20)]
    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(engine.generate, requests))
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, engine.generate(request))


def test_rows_that_are_cancelled_give_what_they_have_and_their_neighbours_everything(
    engine: Engines, slot_engine: SlotEngines
) -> None:
    random = Random(0)
    requests = [random_request(random) for _ in range(40)]

    def answer(request: DecodeRequest) -> tuple[Answer, bool]:
        asked, patience = [0], request.seed % 20 if request.seed % 2 else 1000

        def cancelled() -> bool:
            asked[0] += 1
            return asked[0] > patience

        answer = slot_engine("llama").generate(request, cancelled)
        return answer, asked[0] > patience

    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(answer, requests))
    assert 5 < sum(left for _, left in answers) < 35
    for request, (given, left) in zip(requests, answers, strict=True):
        alone = engine("llama").generate(request)
        if not left:
            assert_same(given, alone)
        if request.config.num_beams > 1:  # a search that is left gives what it had finished
            continue
        for generation, expected in zip(given.generations, alone.generations, strict=True):
            assert generation.token_ids == expected.token_ids[: len(generation.token_ids)]
    assert idle(slot_engine("llama"))


def test_greedy_tokens_are_those_of_transformers(slot_engine: SlotEngines, torch_model: Callable[[str], Any]) -> None:
    import torch

    model = torch_model("qwen2")
    random = Random(1)
    prompts = [tuple(random.randrange(4, 300) for _ in range(n)) for n in (1, 3, 8, 21, 40)]
    config = GenerationConfig.of_checkpoint(model.generation_config.to_dict(), {})
    config = replace(config, max_new_tokens=20, do_sample=False)
    requests = [DecodeRequest(prompt, config.for_prompt(len(prompt), WINDOW)) for prompt in prompts]
    for prompt, answer in zip(prompts, slot_engine("qwen2").generate_all(requests), strict=True):
        ids = torch.tensor([prompt])
        (expected,) = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert [*prompt, *answer.generations[0].token_ids] == expected.tolist()


def test_beams_are_decoded_in_the_slots_too(engine: Engines, slot_engine: SlotEngines) -> None:
    config = GenerationConfig(max_new_tokens=8, num_beams=3, num_return_sequences=2)
    request = DecodeRequest((5, 6, 7), config.for_prompt(3, WINDOW))
    assert slot_engine("gpt2").generate(request) == engine("gpt2").generate(request)


def test_a_stream_gives_tokens_as_they_are_made_and_frees_its_slot_when_it_is_closed(slot_engine: SlotEngines) -> None:
    config = GenerationConfig(max_new_tokens=60).for_prompt(1, WINDOW)
    whole = slot_engine("llama").generate(DecodeRequest((5,), config)).generations[0].token_ids
    stream = slot_engine("llama").stream(DecodeRequest((5,), config))
    assert [next(stream).token_id for _ in range(3)] == whole[:3]
    stream.close()  # type: ignore[attr-defined]
    assert idle(slot_engine("llama"))


def test_what_fails_fails_alone(engine: Engines, slot_engine: SlotEngines) -> None:
    """A stop criterion that raises ends its own request; a step that raises ends those that were in it."""

    def broken(ids: Any) -> bool:
        raise ZeroDivisionError(len(ids))

    config = GenerationConfig(max_new_tokens=20).for_prompt(2, WINDOW)
    good = DecodeRequest((8, 9), config)
    with ThreadPoolExecutor(2) as callers:
        bad = callers.submit(slot_engine("gpt2").generate, replace(good, stop=broken))
        assert_same(callers.submit(slot_engine("gpt2").generate, good).result(), engine("gpt2").generate(good))
    with pytest.raises(ZeroDivisionError, match="3"):
        bad.result()
    assert_same(slot_engine("gpt2").generate(good), engine("gpt2").generate(good))
    assert idle(slot_engine("gpt2"))


@pytest.mark.parametrize("prompt", [(700,), (8, 700), (700, 8)])
def test_a_token_that_the_model_does_not_know_is_refused_before_it_fails_the_others(
    prompt: tuple[int, ...], engine: Engines, slot_engine: SlotEngines
) -> None:
    """A tokenizer may have it nevertheless: a padding token that was added to it alone."""
    good = DecodeRequest((8, 9), GenerationConfig(max_new_tokens=60).for_prompt(2, WINDOW))
    with ThreadPoolExecutor(1) as callers:
        beside = callers.submit(slot_engine("llama").generate, good)
        with pytest.raises(InvalidInputError, match="inputs has the token 700; allowed: 0 to 699"):
            slot_engine("llama").generate(replace(good, prompt=prompt))
    assert_same(beside.result(), engine("llama").generate(good))


def test_an_engine_that_got_no_thread_answers_once_it_gets_one(
    engine: Engines, slot_engine: SlotEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    request = DecodeRequest((8, 9), GenerationConfig(max_new_tokens=3).for_prompt(2, WINDOW))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            slot_engine("gpt2").generate(request)
    with ThreadPoolExecutor(1) as callers:
        answer = callers.submit(slot_engine("gpt2").generate, request).result(timeout=60)
    assert_same(answer, engine("gpt2").generate(request))
    assert idle(slot_engine("gpt2"))


FORBIDDING = (
    {"do_sample": False},
    {"do_sample": True},
    {"do_sample": True, "top_k": 0, "top_p": 0.5},
    {"do_sample": True, "typical_p": 0.5, "min_p": 0.1},
    {"num_beams": 3},
    {"num_beams": 3, "renormalize_logits": True},
    {"num_beams": 2, "do_sample": True},
)


@pytest.mark.parametrize("chosen", FORBIDDING)
def test_a_request_that_forbids_every_token_is_refused_and_fails_alone(
    chosen: dict[str, Any], engine: Engines, slot_engine: SlotEngines, torch_model: Callable[[str], Any]
) -> None:
    """From its first token on, or from its second."""
    good = DecodeRequest((8, 9), GenerationConfig(max_new_tokens=60).for_prompt(2, WINDOW))
    vocabulary = range(torch_model("llama").config.vocab_size)
    config = GenerationConfig(max_new_tokens=5, **chosen, suppress_tokens=tuple(vocabulary)).for_prompt(2, WINDOW)
    later = replace(config, suppress_tokens=tuple(vocabulary)[:-1], no_repeat_ngram_size=1)
    with ThreadPoolExecutor(3) as callers:
        beside = callers.submit(slot_engine("llama").generate, good)
        bad = [callers.submit(slot_engine("llama").generate, DecodeRequest((8, 7), one)) for one in (config, later)]
    assert_same(beside.result(), engine("llama").generate(good))
    for one in bad:
        with pytest.raises(InvalidInputError, match="parameters forbid every token, by suppress_tokens, "):
            one.result()
    with pytest.raises(InvalidInputError, match="parameters forbid every token"):
        engine("llama").generate(DecodeRequest((8, 7), config))
    assert idle(slot_engine("llama"))


def test_a_request_that_no_slot_can_hold_is_refused_with_the_limit(slot_engine: SlotEngines) -> None:
    config = GenerationConfig(max_new_tokens=WINDOW).for_prompt(1, None)
    with pytest.raises(InputTooLongError, match="up to 101 tokens; allowed: 100"):
        slot_engine("gpt2").generate(DecodeRequest((5,), config))


def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one(slot_engine: SlotEngines) -> None:
    """The long one takes 18 rounds; the short one comes first though it came second."""
    long = DecodeRequest(tuple(range(4, 94)), GenerationConfig(max_new_tokens=1).for_prompt(90, WINDOW))
    short = DecodeRequest((5,), GenerationConfig(max_new_tokens=1).for_prompt(1, WINDOW))
    order: list[str] = []

    def named(name: str) -> Callable[[Any], bool]:
        def stop(_ids: Any) -> bool:
            order.append(name)
            return True

        return stop

    slot_engine("gpt2").generate_all([replace(long, stop=named("long")), replace(short, stop=named("short"))])
    assert order == ["short", "long"]


def test_seeds_draw_the_same_tokens_in_any_company(slot_engine: SlotEngines) -> None:
    config = GenerationConfig(max_new_tokens=12, do_sample=True).for_prompt(2, WINDOW)
    requests = [DecodeRequest((8, 9), config, seed=seed) for seed in (1, 2, 1, 3)]
    first, second, again, _ = slot_engine("qwen2").generate_all(requests)
    assert first == again != second
    assert slot_engine("qwen2").generate(requests[0]) == first
