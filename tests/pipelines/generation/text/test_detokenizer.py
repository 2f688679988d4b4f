"""Pieces of text, token by token: together they are the whole, and none ends inside of a character."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.generation.text.detokenizer import Detokenizer
from pipelines.runtime.tokenizer import clean_up_spaces
from tests.pipelines.texts import texts
from tests.tiny_checkpoints import DECODERS

TEXT = "뷁 🦖 서울은 대한민국의 수도 😀 👨‍👩‍👧 isn't it ? Yes , it 's ' great ' ."


@pytest.fixture(scope="module")
def decoders(checkpoint: Callable[..., Path]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(checkpoint(name, "text-generation")) for name in DECODERS}


def decoding(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pieces(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*map(detokenizer.push, ids), detokenizer.finish()]


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("clean_up", [None, clean_up_spaces])
@given(data=st.data())
@settings(max_examples=40)
def test_the_pieces_of_any_tokens_are_what_decoding_all_at_once_adds(
    architecture: str, clean_up: Callable[[str], str] | None, decoders: dict[str, Any], data: st.DataObject
) -> None:
    decode, clean = decoding(decoders[architecture]), clean_up or str
    # LLaMA spells characters in tokens 3 to 258; a run of them that is no UTF-8 changes how its beginning decodes.
    first = 259 if architecture == "llama" else 0
    prompt = data.draw(st.lists(st.integers(first, 436), max_size=8))
    new = data.draw(st.lists(st.integers(first, 436), max_size=25))
    while decode(prompt).endswith("\ufffd"):  # a prompt is a text, which has no half character at its end
        prompt.pop()
    together = "".join(pieces(Detokenizer(prompt, decode, clean_up), new))
    assert together == clean(decode([*prompt, *new]))[len(clean(decode(prompt))) :]


@pytest.mark.parametrize("architecture", DECODERS)
@given(prompt=texts(), new=texts())
@settings(max_examples=25)
def test_the_pieces_of_any_text_are_that_text(
    architecture: str, decoders: dict[str, Any], prompt: str, new: str
) -> None:
    tokenizer = decoders[architecture]
    decode = decoding(tokenizer)
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, new))
    together = "".join(pieces(Detokenizer(before, decode, clean_up_spaces), after))
    assert together == clean_up_spaces(decode([*before, *after]))[len(clean_up_spaces(decode(before))) :]


@given(
    words=st.lists(st.sampled_from([" ", "'", "n", "n't", "s", "re", " .", "v", "ve", "m", "a", "!", ","]), max_size=30)
)
@settings(max_examples=300)
def test_spaces_that_the_next_tokens_may_remove_are_held_back(words: list[str]) -> None:
    def decode(ids: Sequence[int]) -> str:
        return "".join(words[index] for index in ids)

    for start in range(len(words) + 1):
        detokenizer = Detokenizer(range(start), decode, clean_up_spaces)
        together = "".join(pieces(detokenizer, range(start, len(words))))
        assert together == clean_up_spaces("".join(words))[len(clean_up_spaces("".join(words[:start]))) :]


@pytest.mark.parametrize("architecture", DECODERS)
def test_no_piece_ends_inside_of_a_character(architecture: str, decoders: dict[str, Any]) -> None:
    tokenizer = decoders[architecture]
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    found = pieces(Detokenizer((), decoding(tokenizer)), ids)
    assert "".join(found).strip() == TEXT
    assert "\ufffd" not in "".join(found)
    assert "" in found[:-1], "some tokens end inside of a character and hold their text back"
    assert "😀" in "".join(found[: len(tokenizer.encode(TEXT[: TEXT.index("👨")], add_special_tokens=False))])


def test_special_tokens_add_nothing_and_the_space_after_them_stays(decoders: dict[str, Any]) -> None:
    tokenizer = decoders["llama"]
    ids = [*tokenizer.encode("train to"), 2, *tokenizer.encode(" Berlin", add_special_tokens=False)]
    found = pieces(Detokenizer((), decoding(tokenizer)), ids)
    assert "".join(found) == decoding(tokenizer)(ids)


def test_peeking_tells_what_a_token_would_add_and_changes_nothing(decoders: dict[str, Any]) -> None:
    tokenizer = decoders["gpt2"]
    first, second = tokenizer.encode("a train")[:2]
    detokenizer = Detokenizer([first], decoding(tokenizer))
    assert detokenizer.peek(second) == detokenizer.peek(second) == detokenizer.push(second) != ""
