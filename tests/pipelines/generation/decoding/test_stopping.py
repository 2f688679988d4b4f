"""Stop strings across tokens, against transformers' StopStringCriteria, and where we find what it cannot."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.generation.decoding.stopping import StopStrings, finish_reason

DECODE = {0: "", 1: "s", 2: "to", 3: "pped", 4: "stop", 5: "at", 6: "las", 7: "topper"}


def spelled(ids: Sequence[int]) -> str:
    return "".join(DECODE[token] for token in ids)


@pytest.mark.parametrize("ids", [[4], [1, 2, 3], [6, 7], [4, 4], [5, 1, 7]])
def test_a_stop_string_ends_the_answer_wherever_the_boundaries_of_tokens_fall(ids: list[int]) -> None:
    assert StopStrings(["stop"], spelled)(ids)


@pytest.mark.parametrize("ids", [[1, 2], [4, 5], [1, 7, 5], [2, 3]])
def test_a_stop_string_that_the_last_token_has_no_part_in_does_not(ids: list[int]) -> None:
    assert not StopStrings(["stop"], spelled)(ids)


@pytest.fixture(scope="module")
def tokenizers(checkpoint: Callable[..., Path]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(checkpoint(name, "text-generation")) for name in ("gpt2", "llama")}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@given(
    ids=st.lists(st.integers(3, 430), min_size=1, max_size=8),
    stops=st.lists(
        st.sampled_from(["a", "e ", "th", "er", "in the", " ", "\n", "tion", "he "]), min_size=1, max_size=3
    ),
)
@settings(max_examples=60)
def test_it_stops_at_the_tokens_where_transformers_stops(
    architecture: str, tokenizers: dict[str, Any], ids: list[int], stops: list[str]
) -> None:
    import torch
    from transformers.generation.stopping_criteria import StopStringCriteria

    tokenizer = tokenizers[architecture]
    theirs = StopStringCriteria(tokenizer, stops)
    ours = StopStrings(stops, lambda some: str(tokenizer.decode(some, clean_up_tokenization_spaces=False)))
    # Bytes that are no UTF-8 make LLaMA's decoder hide the whole characters beside them, which transformers finds.
    pieces = tokenizer.convert_ids_to_tokens(ids)
    ids = [one for one, piece in zip(ids, pieces, strict=True) if not re.fullmatch("<0x[89A-F].>", piece)]
    for length in range(2, len(ids) + 1):  # the very first token has no space before it when decoded
        assert ours(ids[:length]) == bool(theirs(torch.tensor([ids[:length]]), None)[0])


def test_a_stop_string_of_characters_in_several_byte_tokens_is_found_once_they_are_complete(
    tokenizers: dict[str, Any],
) -> None:
    tokenizer = tokenizers["gpt2"]
    ids = tokenizer.encode("good 😀 day")
    end = len(tokenizer.encode("good 😀"))
    stop = StopStrings(["😀"], tokenizer.decode)
    assert [length for length in range(1, len(ids) + 1) if stop(ids[:length])] == [end]


@pytest.mark.parametrize("stop", ["\n", "쀍"])
def test_a_stop_string_at_the_end_of_the_prompt_is_not_found_in_bytes_that_come_after_it(
    stop: str, tokenizers: dict[str, Any]
) -> None:
    """Until the bytes after it are a character, LLaMA decodes all of them to U+FFFD, and with them the stop string."""
    tokenizer = tokenizers["llama"]
    ids = tokenizer.encode(f"쀍\n{stop}뷁")
    assert [piece[0] for piece in tokenizer.convert_ids_to_tokens(ids[-4:])] == ["<"] * 4
    stops = StopStrings([stop], tokenizer.decode)
    assert [length for length in (1, 2, 3) if stops(ids[: len(ids) - 3 + length])] == []


def test_a_stop_string_in_a_long_run_of_bytes_is_found_wherever_the_search_begins(tokenizers: dict[str, Any]) -> None:
    """It begins a few tokens before the last one, perhaps inside a character."""
    tokenizer = tokenizers["llama"]
    for before in range(1, 6):
        ids = tokenizer.encode("쀍" * before + "\n")
        assert StopStrings(["\n"], tokenizer.decode)(ids)


def test_an_answer_ends_for_the_most_telling_of_several_reasons() -> None:
    def reason(ids: list[int], stop: StopStrings | None = None) -> str | None:
        return finish_reason(ids, eos_token_id=(0, 5), max_length=3, stop=stop)

    always = StopStrings(["s"], lambda ids: "s" * len(ids))
    assert reason([4, 4, 0], always) == "eos_token"
    assert reason([4, 5]) == "eos_token"
    assert reason([4, 4, 4], always) == "stop_sequence"
    assert reason([4, 4, 4]) == "length"
    assert reason([4, 4]) is None
