"""Question answering against transformers: windows, spans, characters, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.errors import InvalidInputError, UnusedParametersError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig
from pipelines.tasks.question_answering import QuestionAnsweringPipeline
from tests.pipelines.agreement import assert_same, assert_same_ranking
from tests.pipelines.texts import texts

TASK = "question-answering"
TOKENIZERS = ("bert", "roberta", "albert", "xlm-roberta")
CONTEXT = (
    "Anna Smith wrote the letter in Paris last winter. 김민수는 1998년 부산에서 태어나 런던에서 공부했다. "
    "The river flows from the mountains of Norway 😀 to the North Sea."
)

Pipelines = Callable[..., Any]
questions = st.fixed_dictionaries({"question": texts(1).filter(lambda text: len(text) < 60), "context": texts(1)})
parameters = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.integers(1, 6),
        "doc_stride": st.integers(0, 24),
        "max_answer_len": st.integers(1, 20),
        "max_seq_len": st.integers(24, 128),
        "max_question_len": st.integers(1, 64),
        "handle_impossible_answer": st.booleans(),
        "align_to_words": st.booleans(),
    },
)


def assert_agrees(ours: Any, theirs: Any) -> None:
    assert isinstance(ours, list) == isinstance(theirs, list)
    assert_same_ranking(*((answer if isinstance(answer, list) else [answer]) for answer in (ours, theirs)))


def answer_or_none(oracle: Any, inputs: Any, asked: dict[str, Any]) -> Any:
    """None where the oracle fails because no window fits: by ValueError, by a bare Exception, or by a Rust panic."""
    try:
        return oracle(**inputs, **asked)
    except BaseException as error:
        if type(error) not in (ValueError, Exception) and type(error).__name__ != "PanicException":
            raise
        return None


@pytest.mark.parametrize("architecture", TOKENIZERS)
@settings(max_examples=25)
@given(inputs=questions, asked=parameters)
@example(inputs={"question": "Who?", "context": " "}, asked={"top_k": 3})  # no token can be the answer
@example(inputs={"question": "Who?", "context": "0"}, asked={"doc_stride": 23, "max_seq_len": 24})
@example(inputs={"question": "Who wrote " * 9, "context": CONTEXT}, asked={"doc_stride": 8, "max_seq_len": 48})
def test_any_question_gets_the_answer_of_transformers(
    architecture: str, inputs: Any, asked: dict[str, Any], loaded: Pipelines, oracle: Pipelines
) -> None:
    theirs = answer_or_none(oracle(architecture, TASK), inputs, asked)
    if theirs is None:
        with pytest.raises(InvalidInputError):
            loaded(architecture, TASK)(inputs, **asked)
    else:
        assert_agrees(loaded(architecture, TASK)(inputs, **asked), theirs)


@pytest.mark.parametrize("handle_impossible_answer", [False, True])
@pytest.mark.parametrize("top_k", [1, 3])
def test_a_long_context_is_read_in_windows_whose_equal_answers_add_up(
    top_k: int, handle_impossible_answer: bool, loaded: Pipelines, oracle: Pipelines
) -> None:
    inputs = {"question": "Where was the letter found?", "context": CONTEXT * 4}
    asked = {"top_k": top_k, "doc_stride": 30, "max_seq_len": 64, "handle_impossible_answer": handle_impossible_answer}
    for architecture in ("bert", "roberta"):
        pipeline = loaded(architecture, TASK)
        (rows,) = pipeline.preprocess([pipeline.parse(inputs)], pipeline.parameters(asked))
        assert len(rows) > 10
        assert max(row.n_tokens for row in rows) == 64
        assert_agrees(pipeline(inputs, **asked), oracle(architecture, TASK)(**inputs, **asked))


def test_a_question_may_be_a_dict_a_list_or_keywords_as_in_transformers(loaded: Pipelines, oracle: Pipelines) -> None:
    ours, theirs = loaded("bert", TASK), oracle("bert", TASK)
    one = {"question": "Who wrote the letter?", "context": CONTEXT}
    other = {"question": "누가 태어나?", "context": CONTEXT}
    assert_same(ours(one), theirs(one))
    assert_same(ours([one, other]), theirs([one, other]))
    assert_same(ours([one]), theirs([one]))  # a dict, not a list of one
    assert_same(ours(**one, top_k=2), theirs(**one, top_k=2))
    assert ours([]) == []


def test_start_and_end_are_characters_of_the_context(loaded: Pipelines) -> None:
    for architecture in TOKENIZERS:
        for found in loaded(architecture, TASK)(question="어디에서?", context="👨‍👩‍👧 e\u0301 " + CONTEXT, top_k=20):
            assert found["answer"] == ("👨‍👩‍👧 e\u0301 " + CONTEXT)[found["start"] : found["end"]]


def test_a_tokenizer_that_pads_on_the_left_puts_the_context_first(
    exported: Callable[..., Path], oracle: Pipelines, checkpoint: Callable[..., Path]
) -> None:
    import transformers

    path = checkpoint("bert", TASK)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    theirs = transformers.pipeline(TASK, str(path), tokenizer=tokenizer, device="cpu")
    artifact = ModelArtifact.open(exported("bert", TASK))
    settings_left = replace(artifact.manifest.tokenizer, padding_side="left")
    left = ModelArtifact(artifact.path, replace(artifact.manifest, tokenizer=settings_left))
    ours = QuestionAnsweringPipeline(left, SessionConfig())
    for context in ("Anna Smith wrote it.", CONTEXT, CONTEXT * 3):
        for top_k in (1, 4):
            inputs = {"question": "Who wrote the letter?", "context": context}
            assert_agrees(ours(inputs, top_k=top_k), theirs(**inputs, top_k=top_k))


def test_windows_of_different_lengths_give_the_same_logits_together_as_alone(loaded: Pipelines) -> None:
    pipeline = loaded("bert", TASK)
    inputs = [pipeline.parse({"question": "Who?", "context": CONTEXT[:length]}) for length in (1, 40, 160)]
    rows = [row for given in pipeline.preprocess(inputs, pipeline.parameters({"max_seq_len": 40})) for row in given]
    for row, together in zip(rows, pipeline.forward(rows), strict=True):
        (alone,) = pipeline.forward([row])
        np.testing.assert_allclose(together.start, alone.start, atol=1e-5)
        np.testing.assert_allclose(together.end, alone.end, atol=1e-5)


@pytest.mark.parametrize("context", [" ", "Anna Smith", CONTEXT])
def test_numbers_that_no_text_reaches_mean_as_many_as_there_are(context: str, loaded: Pipelines) -> None:
    inputs = {"question": "Who wrote the letter?", "context": context}
    largest = {"top_k": 100, "max_answer_len": 512, "max_question_len": 16_384, "max_seq_len": 16_384}
    large = {"top_k": 100, "max_answer_len": 200, "max_question_len": 1000, "max_seq_len": 1000}
    assert_agrees(
        loaded("bert", TASK)(inputs, doc_stride=0, **largest), loaded("bert", TASK)(inputs, doc_stride=0, **large)
    )
    for name, value in largest.items():
        with pytest.raises(InvalidInputError, match=f"^parameters.{name} is {value + 1}; allowed: 1 to {value}$"):
            loaded("bert", TASK)(inputs, **{name: value + 1})


def test_windows_longer_than_the_model_are_refused_only_where_they_occur(loaded: Pipelines, oracle: Pipelines) -> None:
    short = {"question": "Who?", "context": "Anna Smith"}
    assert_same(loaded("bert", TASK)(short, max_seq_len=512), oracle("bert", TASK)(**short, max_seq_len=512))
    with pytest.raises(InvalidInputError, match=r"^parameters.max_seq_len is 512; allowed: at most 128, the length of"):
        loaded("bert", TASK)({"question": "Who?", "context": CONTEXT * 4}, max_seq_len=512)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("Who?", "inputs is 'Who?'; allowed: an object with question and context"),
        ({"question": "Who?"}, "inputs lacks context; allowed: an object with question and context"),
        ({"question": "", "context": "Anna"}, "inputs.question is empty; allowed: a text"),
        ({"question": "Who?", "context": None}, "inputs.context is null; allowed: a text"),
        ({"question": ["Who?"], "context": "Anna"}, "inputs.question is ['Who?']; allowed: a text"),
        (
            {"question": "Who?", "context": "Anna", "id": "1"},
            "inputs has no key 'id'; allowed: context, question",
        ),
    ],
)
def test_a_wrong_input_is_named_in_one_line(inputs: Any, said: str, loaded: Pipelines) -> None:
    with pytest.raises(InvalidInputError) as caught:
        loaded("bert", TASK)(inputs)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"top_k": 0}, "parameters.top_k is 0; allowed: 1 to 100"),
        ({"max_answer_len": 0}, "parameters.max_answer_len is 0; allowed: 1 to 512"),
        ({"max_seq_len": 20, "doc_stride": 21}, "parameters.doc_stride is 21; allowed: at most max_seq_len, 20"),
        ({"max_seq_len": 20, "doc_stride": 19}, "windows of 20 tokens cannot overlap by 19; allowed: at most 18"),
        (
            {"max_seq_len": 20, "doc_stride": 16},
            "a window of 20 tokens holds 6 fixed ones (question and special tokens), which leaves 14 to the text: "
            "more than the stride of 16 is needed",
        ),
        ({"doc_stride": -1}, "parameters.doc_stride is -1; allowed: 0 to 16384"),
        ({"align_to_words": 1}, "parameters.align_to_words is 1; allowed: true or false"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named_in_one_line(asked: dict[str, Any], said: str, loaded: Pipelines) -> None:
    with pytest.raises(InvalidInputError) as caught:
        loaded("bert", TASK)({"question": "Who?", "context": CONTEXT}, **asked)
    assert str(caught.value) == said


def test_an_unknown_parameter_is_refused_in_the_words_that_clients_retry_on(loaded: Pipelines) -> None:
    with pytest.raises(UnusedParametersError, match=r"not used by the model: \['topk'\]"):
        loaded("bert", TASK)({"question": "Who?", "context": CONTEXT}, topk=2)
