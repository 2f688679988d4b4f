"""Tokenizer against the checkpoint's own tokenizer in transformers, and what many threads may do with it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.errors import ArtifactError, InputTooLongError, InvalidInputError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.tokenizer import Tokenizer
from tests.pipelines.texts import texts

TASK = "text-classification"
TOKENIZERS = ("bert", "roberta", "albert", "xlm-roberta")

Tokenizers = Callable[[str], Any]


@pytest.fixture(scope="module")
def artifact(exported: Callable[..., Path]) -> Callable[[str], ModelArtifact]:
    return lambda architecture: ModelArtifact.open(exported(architecture, TASK))


@pytest.fixture(scope="module")
def ours(artifact: Callable[[str], ModelArtifact]) -> Tokenizers:
    made: dict[str, Tokenizer] = {}
    return lambda architecture: made.setdefault(architecture, Tokenizer(artifact(architecture)))


@pytest.fixture(scope="module")
def theirs(checkpoint: Callable[..., Path]) -> Tokenizers:
    from transformers import AutoTokenizer

    made: dict[str, Any] = {}
    return lambda architecture: made.setdefault(
        architecture, AutoTokenizer.from_pretrained(checkpoint(architecture, TASK))
    )


inputs = st.lists(st.one_of(texts(), st.tuples(texts(), texts(1))), min_size=1, max_size=3)


@pytest.mark.parametrize("architecture", TOKENIZERS)
@settings(max_examples=15)
@given(given_inputs=inputs, max_length=st.one_of(st.none(), st.integers(8, 200)), special=st.booleans())
def test_texts_and_pairs_are_encoded_and_cut_as_in_transformers(
    architecture: str,
    given_inputs: list[Any],
    max_length: int | None,
    special: bool,
    ours: Tokenizers,
    theirs: Tokenizers,
) -> None:
    encodings = ours(architecture).encode(given_inputs, max_length=max_length, add_special_tokens=special)
    for one, encoding in zip(given_inputs, encodings, strict=True):
        expected = theirs(architecture)(
            *([one] if isinstance(one, str) else one),
            truncation=max_length is not None,
            max_length=max_length,
            add_special_tokens=special,
            return_token_type_ids=True,
            return_offsets_mapping=True,
        )
        assert encoding.ids == expected["input_ids"]
        assert encoding.type_ids == expected["token_type_ids"]
        assert encoding.offsets == expected["offset_mapping"]
    fast = ours(architecture).encode(given_inputs, max_length=max_length, add_special_tokens=special, offsets=False)
    assert [one.ids for one in fast] == [one.ids for one in encodings]


@pytest.mark.parametrize("architecture", TOKENIZERS)
@settings(max_examples=15)
@given(text=texts(1), other=texts(1), max_length=st.integers(20, 60), stride=st.integers(0, 10))
def test_windows_are_the_overflowing_encodings_of_transformers(
    architecture: str, text: str, other: str, max_length: int, stride: int, ours: Tokenizers, theirs: Tokenizers
) -> None:
    asked = {"max_length": max_length, "stride": stride}
    common = {"truncation": True, "return_overflowing_tokens": True, "return_offsets_mapping": True}
    (windows,) = ours(architecture).windows([text], **asked)
    expected = theirs(architecture)(text, **asked, **common)
    assert [one.ids for one in windows] == expected["input_ids"]
    assert [one.offsets for one in windows] == expected["offset_mapping"]
    short = other[:3]
    assume(len(theirs(architecture)(short, "")["input_ids"]) + stride < max_length)
    for sequence, pair in enumerate([(text, short), (short, text)]):
        (windows,) = ours(architecture).windows([pair], **asked, sequence=sequence)
        asked_side = common | {"truncation": ("only_first", "only_second")[sequence]}
        expected = theirs(architecture)(*pair, **asked, **asked_side)
        assert [one.ids for one in windows] == expected["input_ids"]
        assert [one.offsets for one in windows] == expected["offset_mapping"]


@pytest.mark.parametrize("architecture", TOKENIZERS)
@settings(max_examples=15)
@given(text=texts(), skip=st.booleans(), clean=st.sampled_from((None, True, False)))
def test_ids_are_decoded_as_in_transformers(
    architecture: str, text: str, skip: bool, clean: bool | None, ours: Tokenizers, theirs: Tokenizers
) -> None:
    ids = theirs(architecture)(text + " isn't it , well . I 've ' no ' idea ?")["input_ids"]
    asked = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
    assert ours(architecture).decode(ids, **asked) == theirs(architecture).decode(ids, **asked)


def test_a_text_is_cut_on_the_side_that_the_settings_say(
    artifact: Callable[[str], ModelArtifact], checkpoint: Callable[..., Path]
) -> None:
    from transformers import AutoTokenizer

    found = artifact("bert")
    for side in ("left", "right"):
        manifest = replace(found.manifest, tokenizer=replace(found.manifest.tokenizer, truncation_side=side))
        (encoding,) = Tokenizer(replace(found, manifest=manifest)).encode(["anna smith in paris"], max_length=6)
        theirs = AutoTokenizer.from_pretrained(checkpoint("bert", TASK), truncation_side=side)
        assert encoding.ids == theirs("anna smith in paris", truncation=True, max_length=6)["input_ids"]


def test_threads_with_different_lengths_do_not_disturb_each_other(ours: Tokenizers) -> None:
    tokenizer = ours("bert")

    def cut(max_length: int) -> set[int]:
        return {len(tokenizer.encode(["the river flows " * 30], max_length=max_length)[0]) for _ in range(50)}

    lengths = [10, None, 20, 30, 40, 50]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(cut, lengths))
    whole = len(tokenizer.encode(["the river flows " * 30])[0])
    assert found == [{length or whole} for length in lengths]


def test_windows_without_room_for_the_text_are_refused_before_rust_panics(ours: Tokenizers) -> None:
    question, context = "who wrote the letter?", "anna smith " * 20
    for max_length, stride in ((12, 4), (8, 0), (4, 0), (1, 0)):
        with pytest.raises(InvalidInputError, match="tokens"):
            ours("bert").windows([(question, context)], max_length=max_length, stride=stride, sequence=1)


def test_more_windows_than_memory_holds_are_refused_before_they_are_built(ours: Tokenizers) -> None:
    text = "anna smith " * 20_000
    assert ours("bert").windows([text], max_length=64, stride=0)
    with pytest.raises(
        InputTooLongError, match=r"inputs needs \d+ windows of 64 tokens, with a stride of 61; allowed: "
    ):
        ours("bert").windows([text], max_length=64, stride=61)


def test_nothing_is_encoded_to_nothing(ours: Tokenizers) -> None:
    assert ours("bert").encode([]) == []
    assert ours("bert").windows([], max_length=8, stride=0) == []


def test_a_broken_tokenizer_json_is_refused_in_one_line(
    artifact: Callable[[str], ModelArtifact], tmp_path: Path
) -> None:
    for content in (None, "{}"):
        if content is not None:
            (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ArtifactError) as caught:
            Tokenizer(replace(artifact("bert"), path=tmp_path))
        assert str(caught.value).startswith(f"{tmp_path / 'tokenizer.json'} cannot be read (")
        assert "\n" not in str(caught.value)
