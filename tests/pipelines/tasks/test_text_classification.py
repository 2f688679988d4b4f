"""Text classification against transformers, and the shapes that callers rely on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InvalidInputError, UnusedParametersError
from tests.pipelines.agreement import assert_same
from tests.pipelines.texts import texts

TASK = "text-classification"
TOKENIZERS = ("bert", "roberta", "albert", "xlm-roberta")  # WordPiece, byte-level BPE, two Unigrams
TRUNCATED = {"truncation": True}  # transformers' pipeline overruns the model's positions without it

Pipelines = Callable[..., Any]
pairs = st.fixed_dictionaries({"text": texts()}, optional={"text_pair": st.one_of(st.none(), texts())})


@pytest.mark.parametrize("architecture", TOKENIZERS)
@settings(max_examples=20)
@given(
    inputs=st.one_of(
        texts(), pairs, st.lists(texts(), min_size=1, max_size=3), st.lists(pairs, min_size=1, max_size=2)
    ),
    parameters=st.fixed_dictionaries(
        {}, optional={"function_to_apply": st.sampled_from(("sigmoid", "softmax", "none")), "top_k": st.integers(1, 5)}
    ),
)
def test_any_input_gets_the_answer_of_transformers(
    architecture: str, inputs: Any, parameters: dict[str, Any], loaded: Pipelines, oracle: Pipelines
) -> None:
    theirs = oracle(architecture, TASK)(inputs, **parameters, **TRUNCATED)
    assert_same(loaded(architecture, TASK)(inputs, **parameters), theirs)


@pytest.mark.parametrize("inputs", ["정말 좋아요", ["정말 좋아요"], ["good", "bad"], {"text": "a", "text_pair": "b"}])
@pytest.mark.parametrize("parameters", [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}], ids=str)
def test_the_shape_depends_on_the_input_and_on_top_k_as_in_transformers(
    inputs: Any, parameters: dict[str, Any], loaded: Pipelines, oracle: Pipelines
) -> None:
    assert_same(loaded("bert", TASK)(inputs, **parameters), oracle("bert", TASK)(inputs, **parameters))


@pytest.mark.parametrize(
    "head",
    [
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
    ],
    ids=str,
)
def test_the_head_decides_what_is_applied_to_its_logits(
    head: dict[str, Any], loaded: Pipelines, oracle: Pipelines
) -> None:
    ours, theirs = loaded("bert", TASK, **head), oracle("bert", TASK, **head)
    for text in ("서울은 한강이 흐른다", "Who wrote the letter?", ""):
        assert_same(ours(text), theirs(text))
        assert_same(ours(text, top_k=None), theirs(text, top_k=None))


def test_the_steps_answer_with_all_labels_best_first_unless_top_k_bounds_them(loaded: Pipelines) -> None:
    pipeline = loaded("bert", TASK)
    text = pipeline.parse("Anna Smith found the letter.")
    for asked, expected in (({}, 3), ({"top_k": None}, 3), ({"top_k": 2}, 2)):
        parameters = pipeline.parameters(asked)
        (rows,) = pipeline.preprocess([text], parameters)
        answer = pipeline.postprocess(text, rows, pipeline.forward(rows), parameters)
        assert len(answer) == expected
        assert answer == sorted(answer, key=lambda label: -label["score"])


@settings(max_examples=10)
@given(inputs=st.lists(texts(), min_size=2, max_size=6))
def test_a_batch_of_different_lengths_gives_every_row_its_own_answer(inputs: list[str], loaded: Pipelines) -> None:
    for architecture in ("bert", "roberta"):
        pipeline = loaded(architecture, TASK)
        rows = [row for (row,) in pipeline.preprocess(inputs, pipeline.parameters({}))]
        together = pipeline.forward(rows)
        for row, logits in zip(rows, together, strict=True):
            (alone,) = pipeline.forward([row])
            np.testing.assert_allclose(logits, alone, atol=1e-5)


def test_an_over_long_text_is_cut_to_the_length_of_the_model(loaded: Pipelines) -> None:
    pipeline = loaded("bert", TASK)
    ((row,),) = pipeline.preprocess(["winter " * 5000], pipeline.parameters({}))
    assert row.n_tokens == pipeline.artifact.manifest.tokenizer.max_length


def test_no_inputs_get_no_answers(loaded: Pipelines) -> None:
    assert loaded("bert", TASK)([]) == []


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (None, "inputs is null; allowed: a string or an object with text and perhaps text_pair"),
        (3, "inputs is 3; allowed: a string or an object with text and perhaps text_pair"),
        (["good", None], "inputs is null; allowed: a string or an object with text and perhaps text_pair"),
        ({"text_pair": "b"}, "inputs lacks text; allowed: an object with text and perhaps text_pair"),
        ({"text": "a", "pair": "b"}, "inputs has no key 'pair' (did you mean 'text_pair'?); allowed: text, text_pair"),
        ({"text": None}, "inputs.text is null; allowed: a string"),
        ("ab\ud83d", "inputs has a lone surrogate '\\ud83d' at character 2; allowed: Unicode text"),
    ],
)
def test_a_wrong_input_is_named_in_one_line(inputs: Any, said: str, loaded: Pipelines) -> None:
    with pytest.raises(InvalidInputError) as caught:
        loaded("bert", TASK)(inputs)
    assert str(caught.value) == said


def test_wrong_parameters_are_named_in_one_line(loaded: Pipelines) -> None:
    classify = loaded("bert", TASK)
    with pytest.raises(InvalidInputError, match=r"^parameters.top_k is 0; allowed: 1 to 10000$"):
        classify("text", top_k=0)
    with pytest.raises(InvalidInputError, match=r"^parameters.function_to_apply is 'relu'; allowed: sigmoid, softmax"):
        classify("text", function_to_apply="relu")
    with pytest.raises(UnusedParametersError, match=r"not used by the model: \['return_all_scores'\]"):
        classify("text", return_all_scores=True)
