"""Text generation against `transformers.pipeline` on the same checkpoint, and what only the HTTP contract asks for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import pipelines
from pipelines.errors import ArtifactError, InputTooLongError, InvalidInputError, UnusedParametersError
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS
from tests.pipelines.generation.slots.recording import RecordingDecoder
from tests.pipelines.texts import texts
from tests.tiny_checkpoints import DECODERS

Load = Callable[..., Any]
BOUNDED = settings(max_examples=10, phases=(Phase.reuse, Phase.generate))  # shrinking decodes for minutes
WINDOW = 256


@pytest.fixture
def generator(loaded: Load) -> Any:
    return loaded("gpt2", "text-generation")


def choices() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"max_new_tokens": st.integers(5, 10), "do_sample": st.just(False)},
        optional={
            "return_full_text": st.booleans(),
            "repetition_penalty": st.sampled_from([0.8, 1.5]),
            "no_repeat_ngram_size": st.integers(1, 3),
            "min_new_tokens": st.integers(0, 5),
            "bad_words_ids": st.lists(st.lists(st.integers(10, 299), min_size=1, max_size=2), min_size=1, max_size=30),
            "suppress_tokens": st.lists(st.integers(10, 299), min_size=1, max_size=30),
            "begin_suppress_tokens": st.lists(st.integers(10, 299), min_size=1, max_size=30),
            "forced_eos_token_id": st.integers(300, 400),
        },
    )


@pytest.mark.parametrize("architecture", DECODERS)
@given(text=texts(), chosen=choices())
@BOUNDED
def test_greedy_text_is_that_of_transformers(
    architecture: str, loaded: Load, oracle: Load, text: str, chosen: dict[str, Any]
) -> None:
    reference = oracle(architecture, "text-generation")
    generate = loaded(architecture, "text-generation")
    tokens = len(reference.tokenizer(text).input_ids)
    if not tokens and reference.tokenizer.bos_token is None:
        with pytest.raises(InvalidInputError, match="inputs has no tokens; allowed: a text of at least one"):
            generate(text, **chosen)
    elif tokens + chosen["max_new_tokens"] > WINDOW:
        with pytest.raises(InputTooLongError, match=f"{WINDOW - 1}|window of {WINDOW} tokens"):
            generate(text, **chosen)
    else:
        assert generate(text, **chosen) == reference(text, **chosen)


def test_a_list_of_prompts_has_a_list_of_answers_per_prompt(generator: Any, oracle: Load) -> None:
    prompts = ["The film", "서울은", ""]
    theirs = oracle("gpt2", "text-generation")(prompts, do_sample=False, max_new_tokens=5)
    assert generator(prompts, do_sample=False, max_new_tokens=5) == theirs


def test_the_prompts_of_a_list_decode_together(exported: Callable[..., Path], oracle: Load) -> None:
    generate = pipelines.load(exported("llama", "text-generation"))
    session = InferenceSession(generate.artifact.graph("model"), SessionConfig())
    decoder = RecordingDecoder(CausalSlots(session, SLOTS, WINDOW))
    generate.generator._engine = SlotEngine(decoder, 8)
    prompts, chosen = (
        ["The film", "서울은", "Who wrote the"],
        {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5},
    )

    assert generate(prompts, **chosen) == oracle("llama", "text-generation")(prompts, **chosen)
    assert (len(prompts), 1) in decoder.reads


@given(place=st.integers(1, 40), length=st.integers(1, 6), text=st.sampled_from(["The film was", "Who wrote the"]))
@BOUNDED
def test_a_stop_string_ends_the_text_where_transformers_ends_it(
    loaded: Load, oracle: Load, place: int, length: int, text: str
) -> None:
    reference = oracle("gpt2", "text-generation")
    whole = reference(text, do_sample=False, max_new_tokens=25, return_full_text=False)[0]["generated_text"]
    stop = whole[place % len(whole) :][:length]
    if not stop.isascii() or not stop:  # transformers finds no characters that are spelled in several tokens
        return
    ids = reference.tokenizer(text, return_tensors="pt")
    output = reference.model.generate(
        **ids, do_sample=False, max_new_tokens=25, stop_strings=[stop], tokenizer=reference.tokenizer
    )
    (answer,) = loaded("gpt2", "text-generation")(text, do_sample=False, max_new_tokens=25, stop=[stop], details=True)
    assert answer["details"]["generated_tokens"] == output.shape[1] - ids.input_ids.shape[1]
    assert answer["generated_text"] == reference.tokenizer.decode(output[0], skip_special_tokens=True)
    assert answer["details"]["finish_reason"] in ("stop_sequence", "eos_token")


def test_without_parameters_it_samples_256_tokens_as_the_pipeline_of_transformers(generator: Any) -> None:
    ((row,),) = generator.preprocess(["The film"], generator.parameters({}))
    assert (row.config.do_sample, row.config.temperature, row.config.top_k) == (True, 0.7, 50)
    assert row.config.max_length == WINDOW, "256 new tokens, cut to what the model can read"
    assert generator("The film", seed=3) == generator("The film", seed=3)
    assert generator("The film", seed=3) != generator("The film", seed=4)


def test_the_details_are_those_of_text_generation_inference(generator: Any) -> None:
    (answer,) = generator(
        "The film", max_new_tokens=4, seed=5, details=True, decoder_input_details=True, top_n_tokens=2
    )
    details = answer["details"]
    assert list(details) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens", "top_tokens"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 4, 5)
    assert "".join(token["text"] for token in details["prefill"]) == "The film"
    assert [token["logprob"] is None for token in details["prefill"]] == [True] + [False] * (
        len(details["prefill"]) - 1
    )
    assert all(list(token) == ["id", "text", "logprob", "special"] for token in details["tokens"])
    assert answer["generated_text"] == "The film" + "".join(token["text"] for token in details["tokens"])
    assert [len(top) for top in details["top_tokens"]] == [2, 2, 2, 2]
    assert all(one["logprob"] >= other["logprob"] for one, other in details["top_tokens"])


def test_a_greedy_answer_has_no_seed_and_the_likeliest_tokens(generator: Any) -> None:
    (answer,) = generator("The film", do_sample=False, max_new_tokens=6, top_n_tokens=1)
    assert answer["details"]["seed"] is None
    likeliest = [token["id"] for (token,) in answer["details"]["top_tokens"]]
    assert [token["id"] for token in answer["details"]["tokens"]] == likeliest


def test_the_end_of_sequence_is_special_counts_as_a_token_and_adds_no_text(generator: Any) -> None:
    sampled = (generator("A", seed=seed, max_new_tokens=30, temperature=3.0, details=True)[0] for seed in range(200))
    answer = next(one for one in sampled if one["details"]["finish_reason"] == "eos_token")
    tokens = answer["details"]["tokens"]
    assert (tokens[-1]["id"], tokens[-1]["special"]) == (0, True)
    assert answer["details"]["generated_tokens"] == len(tokens) <= 30
    assert answer["generated_text"] == "A" + "".join(token["text"] for token in tokens)
    assert "<|endoftext|>" not in answer["generated_text"]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@given(text=st.sampled_from(["The film", "서울은 😀", "Who wrote", "isn't it ' "]), seed=st.integers(0, 1000))
@BOUNDED
def test_a_stream_is_the_answer_in_pieces(architecture: str, loaded: Load, text: str, seed: int) -> None:
    generate = loaded(architecture, "text-generation")
    given_parameters = {"max_new_tokens": 15, "seed": seed, "top_n_tokens": 1, "top_k": 20, "return_full_text": False}
    parameters = generate.parameters(given_parameters)
    ((row,),) = generate.preprocess([text], parameters)
    *events, last = asyncio.run(streamed_events(generate, row, parameters))
    (answer,) = generate(text, **given_parameters)
    streamed = [event["token"] for event in [*events, last]]
    assert [event["index"] for event in [*events, last]] == list(range(1, len(streamed) + 1))
    assert streamed == rounded(answer["details"]["tokens"])
    top_tokens = [event["top_tokens"] for event in [*events, last]]
    assert top_tokens == [*map(rounded, answer["details"]["top_tokens"])]
    assert all(event["generated_text"] is None and event["details"] is None for event in events)
    assert last["generated_text"] == answer["generated_text"]
    assert last["details"] == {
        "finish_reason": answer["details"]["finish_reason"],
        "generated_tokens": len(streamed),
        "seed": seed,
        "input_length": len(row.prompt),
    }


async def streamed_events(generate: Any, row: Any, parameters: Any) -> list[Any]:
    row, write = generate.stream(row, parameters)
    written = [write(step) async for _, step in generate.scheduler().stream([row])]
    assert [is_last for _, is_last in written] == [False] * (len(written) - 1) + [True]
    return [event for event, _ in written]


def rounded(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens with logprobs as near as they come: what is held of a prompt was read in another company."""
    return [token | {"logprob": pytest.approx(token["logprob"], abs=1e-4)} for token in tokens]


def test_the_best_of_several_answers_has_the_highest_logprob_per_token(generator: Any) -> None:
    (answer,) = generator("The film", best_of=4, max_new_tokens=6, seed=1, details=True)
    details = answer["details"]
    candidates = [details, *details["best_of_sequences"]]
    means = [sum(token["logprob"] for token in one["tokens"]) / len(one["tokens"]) for one in candidates]
    assert len(candidates) == 4
    assert means == sorted(means, reverse=True)
    assert len({one["generated_text"] for one in details["best_of_sequences"]} | {answer["generated_text"]}) == 4


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_truncate_keeps_the_last_tokens_and_the_token_that_begins_every_prompt(loaded: Load, architecture: str) -> None:
    generate = loaded(architecture, "text-generation")
    ((whole,),) = generate.preprocess(["The film was wonderful"], generate.parameters({"max_new_tokens": 5}))
    ((cut,),) = generate.preprocess(
        ["The film was wonderful"], generate.parameters({"max_new_tokens": 5, "truncate": 4})
    )
    begins = whole.prompt[:1] if architecture == "llama" else ()
    assert cut.prompt == (*begins, *whole.prompt[len(whole.prompt) - 4 + len(begins) :])
    assert cut.config.max_length == 9
    assert generate("The film was wonderful " * 50, truncate=10, max_new_tokens=2)


@pytest.mark.parametrize(
    ("given_parameters", "message"),
    [
        ({"temperature": 0.0}, "parameters.temperature is 0.0; allowed: 1e-9 to 1e9"),
        ({"top_p": 1.5}, "parameters.top_p is 1.5; allowed: above 0 and at most 1"),
        ({"max_new_tokens": 0}, "parameters.max_new_tokens is 0; allowed: an integer from 1"),
        ({"max_new_tokens": "many"}, "parameters.max_new_tokens is 'many'; allowed: an integer"),
        ({"max_new_tokens": 1000}, "parameters.max_new_tokens is 1000; allowed: at most 252, as the model"),
        ({"min_new_tokens": 300}, "parameters.min_new_tokens is 300; allowed: at most 252, where the answer ends"),
        ({"frequency_penalty": 3}, "parameters.frequency_penalty is 3; allowed: -2 to 2"),
        ({"presence_penalty": 3}, "parameters.presence_penalty is 3; allowed: -2 to 2"),
        ({"count_penalty": -3}, "parameters.count_penalty is -3; allowed: -2 to 2"),
        ({"bad_words_ids": [[5], []]}, "parameters.bad_words_ids[1] is empty; allowed: at least one element"),
        ({"bad_words_ids": [[5, 437]]}, "parameters.bad_words_ids is 437; allowed: token ids from 0 to 436"),
        ({"suppress_tokens": [-1]}, "parameters.suppress_tokens is -1; allowed: token ids from 0 to 436"),
        ({"forced_eos_token_id": 437}, "parameters.forced_eos_token_id is 437; allowed: token ids from 0 to 436"),
        ({"seed": -1}, "parameters.seed is -1; allowed: an integer from 0 to"),
        ({"stop": [""]}, "parameters.stop[0] is empty; allowed: a text"),
        ({"truncate": 0}, "parameters.truncate is 0; allowed: an integer from 1"),
        ({"best_of": 9}, "parameters.best_of is 9; allowed: 1 to 8"),
        ({"best_of": 2, "do_sample": False}, "parameters.best_of is 2; allowed with do_sample false: 1"),
        ({"top_n_tokens": 21}, "parameters.top_n_tokens is 21; allowed: 0 to 20"),
        ({"do_sample": False, "top_p": 0.5}, "parameters.top_p is 0.5; allowed: only with do_sample: true"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_what_is_allowed(
    generator: Any, given_parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        generator("The film", **given_parameters)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("name", ["watermark", "adapter_id", "unheard_of"])
def test_a_parameter_that_cannot_be_honoured_is_refused_in_the_words_clients_know(generator: Any, name: str) -> None:
    with pytest.raises(UnusedParametersError) as refused:
        generator("The film", **{name: True})
    assert str(refused.value) == f"The following `model_kwargs` are not used by the model: ['{name}']"


def test_a_grammar_needs_a_pipeline_that_was_loaded_with_a_compiler(generator: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"parameters.grammar.value is set; allowed: where the pipeline was"):
        generator("The film", grammar={"type": "regex", "value": "a+"})


def test_neutral_values_of_unknown_abilities_are_accepted(generator: Any) -> None:
    neutral = {"watermark": False, "adapter_id": None, "grammar": None, "top_k": None, "best_of": 1}
    assert generator("The film", max_new_tokens=1, **neutral)


@pytest.mark.parametrize(
    ("given_parameters", "message"),
    [
        ({"best_of": 2}, "parameters.best_of is 2; allowed with stream: 1"),
        ({"decoder_input_details": True}, "parameters.decoder_input_details is true; allowed with stream: false"),
    ],
)
def test_what_needs_the_whole_answer_cannot_be_streamed(
    generator: Any, given_parameters: dict[str, Any], message: str
) -> None:
    parameters = generator.parameters(given_parameters)
    ((row,),) = generator.preprocess(["The film"], parameters)
    with pytest.raises(InvalidInputError, match=message):
        generator.stream(row, parameters)


def test_a_prompt_that_fills_the_window_is_refused_with_the_limit_and_the_remedy(generator: Any) -> None:
    with pytest.raises(InputTooLongError, match=r"inputs has \d+ tokens; allowed: at most 255, or parameters.truncate"):
        generator("The film " * 200)


def test_a_row_tells_what_it_reads_and_what_it_may_write(generator: Any) -> None:
    parameters = generator.parameters({"max_new_tokens": 7, "best_of": 2})
    ((row,),) = generator.preprocess(["The film"], parameters)
    assert (row.n_tokens, row.max_new_tokens) == (len(row.prompt), 2 * 7)


def test_a_checkpoint_with_beams_cannot_generate_text_token_by_token(exported: Callable[..., Path]) -> None:
    with pytest.raises(ArtifactError, match="generation_config.json sets num_beams, which cannot be streamed"):
        pipelines.load(exported("gpt2", "text-generation", num_beams=3), allow_unverified=True)
