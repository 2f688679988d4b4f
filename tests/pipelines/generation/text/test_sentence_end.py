"""SentenceEnd: the first token of another sentence, and nothing else."""

import re
from collections.abc import Sequence

import pytest

from pipelines.generation.text.sentence_end import SentenceEnd


def first_sentence(text: str, least: int = 0) -> str:
    """What is left of a text whose tokens are words with the space before them, with a prompt of two before it."""
    pieces = re.findall(r"\s*\w+|\s*[^\w\s]", text)
    prompt = ["Summarize.", " Now!"]

    def decode(ids: Sequence[int]) -> str:
        return "".join([*prompt, *pieces][index] for index in ids)

    ends = SentenceEnd(decode, len(prompt), len(prompt) + least)
    for count in range(1, len(pieces) + 1):
        if ends(range(len(prompt) + count)):
            return "".join(pieces[: count - 1])
    return text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("It rained. Then it snowed.", "It rained."),
        ('He said "it rained." Then he left.', 'He said "it rained."'),
        ("It rained for 3.5 hours. Then it snowed.", "It rained for 3.5 hours."),
        ("Dr. Smith met J. R. Ewing et al. in May. They talked.", "Dr. Smith met J. R. Ewing et al. in May."),
        ("It is used, e.g. Here, by many. It works.", "It is used, e.g. Here, by many."),
        ("Did it rain? Yes.", "Did it rain?"),
        ("비가 왔습니다. 그리고 눈이 왔습니다.", "비가 왔습니다."),
        ("雨。\n雪。", "雨。"),
        ("A title\n\nIt rained.", "A title"),
        ("It never ends", "It never ends"),
        ("It rained. and went on. Then it snowed.", "It rained. and went on."),
    ],
)
def test_an_answer_ends_with_its_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_a_least_length_is_reached_with_whole_sentences() -> None:
    text = "It rained. Then it snowed. Then the sun came out."

    assert first_sentence(text, least=4) == "It rained. Then it snowed."
    assert first_sentence(text, least=3) == "It rained."
