"""The engine against `model.generate` of transformers on the same checkpoint, token for token."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipelines.errors import ArtifactError
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import Answer, DecodeRequest
from pipelines.generation.plain.decoder import open_decoder
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import WINDOW
from tests.tiny_checkpoints import DECODERS, ENCODER_DECODERS

BOUNDED = settings(max_examples=8, phases=(Phase.reuse, Phase.generate))  # shrinking decodes for minutes
ARCHITECTURES = (*DECODERS, *ENCODER_DECODERS)
TOKENS = st.integers(4, 299)  # in every tiny vocabulary, and not special
FORCED = st.integers(300, 320)  # never suppressed as well: then nothing would be left to choose from
OTHERS = tuple(token for token in range(437) if token not in (5, 6))


def constraints() -> st.SearchStrategy[dict[str, Any]]:
    """Any mix of what bends the scores before a token is chosen, for an answer of up to 12 tokens."""
    return st.fixed_dictionaries(
        {"max_new_tokens": st.integers(1, 12)},
        optional={
            "repetition_penalty": st.sampled_from([0.7, 1.3, 2.0]),
            "no_repeat_ngram_size": st.integers(1, 3),
            "bad_words_ids": st.lists(st.lists(TOKENS, min_size=1, max_size=2), min_size=1, max_size=20),
            "min_new_tokens": st.integers(0, 8),
            "min_length": st.integers(0, 12),
            "forced_bos_token_id": FORCED,
            "forced_eos_token_id": st.lists(FORCED, min_size=1, max_size=2),
            "suppress_tokens": st.lists(TOKENS, min_size=1, max_size=50),
            "begin_suppress_tokens": st.lists(TOKENS, min_size=1, max_size=50),
            "eos_token_id": st.lists(TOKENS, min_size=1, max_size=4, unique=True),
        },
    )


def beams() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"num_beams": st.integers(2, 5)},
        optional={
            "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
            "early_stopping": st.sampled_from([True, False, "never"]),
            "renormalize_logits": st.booleans(),
        },
    )


def prompts() -> st.SearchStrategy[list[int]]:
    return st.lists(TOKENS, min_size=1, max_size=14)


def ours(engine: PlainEngine | SlotEngine, model: Any, prompt: list[int], settings_: dict[str, Any]) -> Answer:
    defaults = GenerationConfig.of_checkpoint(model.generation_config.to_dict(), {})
    config = replace(defaults, **{name: _tuples(value) for name, value in settings_.items()})
    if model.config.is_encoder_decoder:
        assert config.decoder_start_token_id is not None
        request = DecodeRequest((config.decoder_start_token_id,), config.for_prompt(1, WINDOW), source=tuple(prompt))
    else:
        request = DecodeRequest(tuple(prompt), config.for_prompt(len(prompt), WINDOW))
    return engine.generate(request)


def theirs(model: Any, prompt: list[int], settings_: dict[str, Any]) -> list[list[int]]:
    """The new tokens of each sequence, up to the first end of sequence."""
    import torch

    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings_)
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    eos = settings_.get("eos_token_id", [model.generation_config.eos_token_id])
    return [_until(sequence[start:], eos) for sequence in output.tolist()]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(data=st.data())
@BOUNDED
def test_greedy_tokens_are_those_of_transformers_under_any_constraints(
    architecture: str, engine: Callable[[str], PlainEngine], torch_model: Callable[[str], Any], data: st.DataObject
) -> None:
    model = torch_model(architecture)
    prompt, chosen = data.draw(prompts()), data.draw(constraints())
    expected = theirs(model, prompt, {"do_sample": False, "num_beams": 1, **chosen})
    (generation,) = ours(engine(architecture), model, prompt, chosen).generations
    assert [generation.token_ids] == expected
    assert len(generation.steps) <= chosen["max_new_tokens"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(data=st.data())
@BOUNDED
def test_beams_are_those_of_transformers_in_its_order(
    architecture: str, engine: Callable[[str], PlainEngine], torch_model: Callable[[str], Any], data: st.DataObject
) -> None:
    model = torch_model(architecture)
    prompt, chosen = data.draw(prompts()), data.draw(constraints()) | data.draw(beams())
    chosen["max_new_tokens"] += 2  # forced tokens alone make a single answer, which transformers repeats as padding
    if "forced_eos_token_id" in chosen:  # several would tie, and ties come in any order
        chosen["forced_eos_token_id"] = chosen["forced_eos_token_id"][:1]
    chosen["num_return_sequences"] = data.draw(st.integers(1, chosen["num_beams"]))
    answer = ours(engine(architecture), model, prompt, chosen)
    assert [generation.token_ids for generation in answer.generations] == theirs(model, prompt, chosen)


@given(prompt=st.lists(TOKENS, min_size=1, max_size=30), top_tokens=st.integers(0, 5))
@BOUNDED
def test_logprobs_are_the_models_own_for_the_prompt_and_for_every_token(
    engine: Callable[[str], PlainEngine], torch_model: Callable[[str], Any], prompt: list[int], top_tokens: int
) -> None:
    import torch

    model = torch_model("llama")
    config = GenerationConfig(max_new_tokens=5, repetition_penalty=2.0, suppress_tokens=tuple(range(100, 200)))
    answer = engine("llama").generate(
        DecodeRequest(
            tuple(prompt),
            config.for_prompt(len(prompt), WINDOW),
            logprobs=True,
            top_tokens=top_tokens,
            prompt_logprobs=True,
        )
    )
    (generation,) = answer.generations
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + generation.token_ids])).logits[0].log_softmax(-1).numpy()
    assert answer.prompt_logprobs == pytest.approx(logprobs[range(len(prompt) - 1), prompt[1:]].tolist(), abs=1e-4)
    for place, step in enumerate(generation.steps, start=len(prompt) - 1):
        assert step.logprob == pytest.approx(logprobs[place, step.token_id], abs=1e-4)
        best = logprobs[place].argsort()[::-1][:top_tokens]
        assert [token for token, _ in step.top] == best.tolist()
        assert [logprob for _, logprob in step.top] == pytest.approx(logprobs[place, best].tolist(), abs=1e-4)


def test_the_frequency_penalty_is_that_of_text_generation_inference(engine: Callable[[str], PlainEngine]) -> None:
    prompt = (5, 6, 5, 7)
    config = GenerationConfig(max_new_tokens=1, eos_token_id=(0,)).for_prompt(4, WINDOW)

    def chosen(penalty: float) -> int:
        request = DecodeRequest(prompt, replace(config, frequency_penalty=penalty, suppress_tokens=OTHERS))
        return engine("gpt2").generate(request).generations[0].token_ids[0]

    request = DecodeRequest(prompt, config, logprobs=True, top_tokens=437)
    logprobs = dict(engine("gpt2").generate(request).generations[0].steps[0].top)
    # Half of the prompt is token 5, a quarter token 6: 5 loses its lead over 6 at four times their difference.
    lead = logprobs[5] - logprobs[6]
    first, last = (5, 6) if lead > 0 else (6, 5)
    assert chosen(0.0) == first
    assert chosen(4 * lead + np.sign(lead) * 0.01) == last
    assert chosen(4 * lead - np.sign(lead) * 0.01) == first


@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
@pytest.mark.parametrize("changes", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
def test_decoding_ends_at_the_first_step_after_a_cancellation(
    engine: Callable[[str], PlainEngine], architecture: str, changes: dict[str, Any]
) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 4

    config = GenerationConfig(max_new_tokens=50, **changes).for_prompt(1, WINDOW)
    answer = engine(architecture).generate(DecodeRequest((5,), config, source=(6, 7)), cancelled)
    assert len(asked) <= 4 + 3
    assert all(len(generation.steps) <= 4 for generation in answer.generations)


def test_the_same_seed_draws_the_same_tokens_and_its_samples_differ(engine: Callable[[str], PlainEngine]) -> None:
    config = GenerationConfig(max_new_tokens=12, do_sample=True, num_return_sequences=3).for_prompt(2, WINDOW)

    def tokens(seed: int) -> list[list[int]]:
        answer = engine("qwen2").generate(DecodeRequest((8, 9), config, seed=seed))
        return [generation.token_ids for generation in answer.generations]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert len(set(map(tuple, tokens(1)))) == 3
    streamed = engine("qwen2").stream(DecodeRequest((8, 9), replace(config, num_return_sequences=1), seed=1))
    assert [step.token_id for step in streamed] == tokens(1)[0]


def test_sampled_beams_are_reproducible_and_sorted_by_score(engine: Callable[[str], PlainEngine]) -> None:
    config = GenerationConfig(
        max_new_tokens=8, do_sample=True, num_beams=4, num_return_sequences=4, eos_token_id=(2,), temperature=3.0
    ).for_prompt(1, WINDOW)

    def tokens(seed: int) -> list[list[int]]:
        answer = engine("t5").generate(DecodeRequest((0,), config, source=(8, 9), seed=seed))
        return [generation.token_ids for generation in answer.generations]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert len(tokens(1)) == 4


def test_a_graph_that_is_no_decoder_is_refused_by_the_name_of_its_input(exported: Callable[..., Path]) -> None:
    artifact = ModelArtifact.open(exported("bert", "text-classification"), allow_unverified=True)
    with pytest.raises(ArtifactError, match=r"model.onnx has an input token_type_ids .* that no supported decoder has"):
        open_decoder(artifact, SessionConfig())


def test_an_encoder_passes_for_no_decoder_either(exported: Callable[..., Path]) -> None:
    artifact = ModelArtifact.open(exported("distilbert", "text-classification"), allow_unverified=True)
    with pytest.raises(ArtifactError, match=r"model.onnx has no past_key_values inputs; export it with a key-value"):
        open_decoder(artifact, SessionConfig())
