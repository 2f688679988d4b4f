"""Which values win: against the generation config that `transformers.pipeline` decodes with."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ArtifactError, InvalidInputError
from pipelines.generation.decoding.config import GenerationConfig

PIPELINES: dict[str, dict[str, Any]] = {
    "text-generation": {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7},
    "summarization": {"max_new_tokens": 256, "num_beams": 4},
}


BEYOND_TRANSFORMERS = ("frequency_penalty", "presence_penalty", "count_penalty", "logit_bias")


def checkpoint_values() -> st.SearchStrategy[dict[str, Any]]:
    """What a generation_config.json, or an entry of task_specific_params, may say."""
    return st.fixed_dictionaries(
        {},
        optional={
            "max_length": st.sampled_from([20, 50, 142]),
            "max_new_tokens": st.sampled_from([7, 256]),
            "min_length": st.sampled_from([0, 56]),
            "min_new_tokens": st.integers(0, 3),
            "num_beams": st.sampled_from([1, 4, 6]),
            "do_sample": st.booleans(),
            "early_stopping": st.sampled_from([True, False, "never"]),
            "length_penalty": st.sampled_from([1.0, 2.0]),
            "temperature": st.sampled_from([1.0, 0.7, 0.6]),
            "top_k": st.sampled_from([0, 50, 10, None]),
            "top_p": st.sampled_from([1.0, 0.9, None]),
            "repetition_penalty": st.sampled_from([1.0, 1.2]),
            "no_repeat_ngram_size": st.sampled_from([0, 3]),
            "bad_words_ids": st.just([[3], [4, 5]]),
            "forced_bos_token_id": st.integers(0, 9),
            "forced_eos_token_id": st.integers(0, 9),
            "suppress_tokens": st.just([5, 6]),
            "eos_token_id": st.sampled_from([2, [2, 7]]),
            "decoder_start_token_id": st.just(2),
        },
    )


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Any]]:
    import transformers

    transformers.logging.set_verbosity_error()
    gpt2 = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=32, n_positions=512)
    t5 = transformers.T5Config(d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=32)
    yield {
        "text-generation": transformers.GPT2LMHeadModel(gpt2),
        "summarization": transformers.T5ForConditionalGeneration(t5),
    }
    transformers.logging.set_verbosity_warning()


@pytest.mark.parametrize("task", list(PIPELINES))
@given(stored=checkpoint_values(), specific=st.none() | checkpoint_values(), length=st.integers(1, 40))
@settings(max_examples=40)
def test_the_checkpoint_the_task_and_transformers_defaults_win_as_in_transformers(
    task: str, models: dict[str, Any], stored: dict[str, Any], specific: dict[str, Any] | None, length: int
) -> None:
    import transformers

    model = models[task]
    model.generation_config = transformers.GenerationConfig(**stored)
    model.config.task_specific_params = None if specific is None else {task: dict(specific)}
    pipe = transformers.pipelines.check_task(task)[1]["impl"](model=model, tokenizer=None, task=task, framework="pt")
    theirs, _ = model._prepare_generation_config(pipe.generation_config)
    decoder_tokens = length if task == "text-generation" else 1
    model._prepare_generated_length(theirs, True, True, "input_ids", decoder_tokens, None)

    config = GenerationConfig.of_checkpoint(model.generation_config.to_dict(), PIPELINES[task], specific)
    ours = config.for_prompt(decoder_tokens, window=512)
    for name in vars(ours):
        if name not in ("max_new_tokens", "min_new_tokens", *BEYOND_TRANSFORMERS):
            assert plain(getattr(ours, name)) == plain(getattr(theirs, name), off=name), name


def plain(value: Any, off: str = "") -> Any:
    """Lists as tuples; what stands for "off" in the same way on both sides."""
    if value is None and off in ("top_k", "top_p"):
        return {"top_k": 0, "top_p": 1.0}[off]
    if isinstance(value, list | tuple):
        return tuple(map(plain, value)) or None
    return (value,) if off in ("eos_token_id", "forced_eos_token_id") and value is not None else value


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups to 2, which is not supported"),
        ({"guidance_scale": 1.5}, "guidance_scale to 1.5"),
        ({"sequence_bias": [[[5], -1.0]]}, "sequence_bias"),
        ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size to 3"),
        ({"exponential_decay_length_penalty": [5, 1.1]}, "exponential_decay_length_penalty"),
        ({"stop_strings": ["\n"]}, "stop_strings"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config"),
        ({"repetition_penalty": 0.0}, "repetition_penalty to 0.0; allowed: 1e-9 to 1e9"),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused_by_name(
    stored: dict[str, Any], named: str
) -> None:
    with pytest.raises(ArtifactError, match=f"generation_config.json sets {named}"):
        GenerationConfig.of_checkpoint(stored, {})


def test_what_changes_nothing_is_accepted() -> None:
    stored = {"use_cache": True, "num_beam_groups": 1, "guidance_scale": None, "transformers_version": "4.20.0"}
    assert GenerationConfig.of_checkpoint(stored, {}) == GenerationConfig(max_new_tokens=20)


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; allowed: 1e-9 to 1e9"),
        ({"top_p": 0.0}, "top_p is 0.0; allowed: above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"typical_p": 0.0}, "typical_p is 0.0"),
        ({"min_p": 2.0}, "min_p is 2.0; allowed: 0 to 1"),
        ({"top_k": -1}, "top_k is -1; allowed: an integer from 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; allowed: 1e-9 to 1e9"),
        ({"temperature": 1e-300}, "temperature is 1e-300"),
        ({"temperature": 1e308}, "temperature is 1e\\+308"),
        ({"length_penalty": 1e308, "num_beams": 2}, "length_penalty is 1e\\+308; allowed: -10 to 10"),
        ({"frequency_penalty": 3.0}, "frequency_penalty is 3.0; allowed: -2 to 2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: an integer from 1"),
        ({"num_beams": 33}, "num_beams is 33; allowed: 1 to 32"),
        ({"max_length": 5, "max_new_tokens": 5}, "has both max_length and max_new_tokens"),
        ({"min_length": 9, "max_length": 5}, "min_length is 9; allowed: at most max_length, 5"),
        ({"temperature": 0.5}, "temperature is 0.5; allowed: only with do_sample: true"),
        ({"top_k": 5, "do_sample": False}, "top_k is 5; allowed: only with do_sample: true"),
        ({"length_penalty": 2.0}, "length_penalty is 2.0; allowed: only with num_beams above 1"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2; allowed: 1 to 1"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences is 3; allowed: 1 to 2"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_what_is_allowed(
    given_values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"parameters(\\.| ){message}"):
        GenerationConfig().with_request(given_values)


def test_a_length_that_was_asked_for_wins_over_a_default_budget() -> None:
    """Transformers warns and decodes 256 tokens: the pipeline's default for new tokens beats the caller's total."""
    config = GenerationConfig(max_new_tokens=256).with_request({"max_length": 20})
    assert config.for_prompt(1, 512).max_length == 20


def test_values_that_mean_off_are_accepted_where_they_have_no_effect() -> None:
    config = GenerationConfig().with_request({"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50})
    assert config == GenerationConfig()


def test_a_checkpoints_least_length_and_forced_tokens_do_not_hold_where_a_grammar_does() -> None:
    config = GenerationConfig(min_length=30, forced_eos_token_id=(2,), forced_bos_token_id=1, repetition_penalty=1.2)

    assert config.guided() == GenerationConfig(repetition_penalty=1.2)
