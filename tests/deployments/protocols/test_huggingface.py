"""The Hugging Face protocol as pure functions: every body is a request or an error that names the field."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.protocols.huggingface import named, read, write
from deployments.protocols.protocol import TaskRequest
from pipelines.errors import InputTooLongError, InvalidInputError
from pipelines.tasks import TASKS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["inputs", "parameters", "options", "stream", "input", ""])


@given(task=st.sampled_from(list(TASKS)), body=JSON | st.dictionaries(KEYS, JSON, max_size=4))
def test_every_body_is_a_request_or_an_error_of_one_line(task: str, body: Any) -> None:
    try:
        outcome: TaskRequest | str = read(task, body)
    except InvalidInputError as error:
        outcome = str(error)

    if isinstance(outcome, TaskRequest):
        assert outcome.inputs
        assert isinstance(outcome.parameters, dict)
    else:
        assert "allowed" in outcome
        assert len(outcome) < 400


def test_a_list_is_answered_by_a_list_of_the_single_answers() -> None:
    one, many = read("translation", {"inputs": "a"}), read("translation", {"inputs": ["a", "b"]})
    answers = [[{"translation_text": "A"}], [{"translation_text": "B"}]]

    assert write("translation", one, answers[:1]) == answers[0]
    assert write("translation", many, answers) == answers


def test_the_labels_of_one_text_are_nested_and_those_of_a_list_once() -> None:
    one, many = read("text-classification", {"inputs": "a"}), read("text-classification", {"inputs": ["a", "b"]})
    labels = [{"label": "x", "score": 1.0}]

    assert write("text-classification", one, [labels]) == [labels]
    assert write("text-classification", many, [labels, labels]) == [labels, labels]


def test_one_question_is_answered_by_one_object() -> None:
    request = read("question-answering", {"inputs": {"question": "q", "context": "c"}})

    assert request.inputs == [{"question": "q", "context": "c"}]
    assert write("question-answering", request, [{"answer": "c"}]) == {"answer": "c"}


def test_generation_parameters_is_another_name_of_generate_parameters() -> None:
    body = {"inputs": "a", "parameters": {"generation_parameters": {"num_beams": 2}}}

    assert read("translation", body).parameters == {"generate_parameters": {"num_beams": 2}}


def test_options_that_hold_by_themselves_are_accepted_and_others_are_not() -> None:
    assert read("translation", {"inputs": "a", "options": {"use_cache": False, "wait_for_model": True}}).inputs == ["a"]
    with pytest.raises(InvalidInputError, match="options has the key 'use_gpu'; allowed: use_cache, wait_for_model"):
        read("translation", {"inputs": "a", "options": {"use_gpu": True}})


@pytest.mark.parametrize(
    ("task", "body", "message"),
    [
        ("translation", [1], "the body is [1]; allowed: an object with inputs and perhaps parameters"),
        ("translation", {"text": "a"}, "the body has the key 'text'; allowed: inputs, parameters, options"),
        ("translation", {}, "inputs is missing"),
        ("translation", {"inputs": None}, "inputs is missing"),
        ("translation", {"inputs": ""}, "inputs is empty; allowed: a text"),
        ("translation", {"inputs": []}, "inputs is empty; allowed: at least one input"),
        ("translation", {"inputs": ["a", ""]}, "inputs[1] is empty; allowed: a text"),
        ("translation", {"inputs": "a", "parameters": 3}, "parameters is 3; allowed: an object"),
        ("translation", {"inputs": "a", "stream": True}, "the body has the key 'stream'"),
        ("text-generation", {"inputs": "a", "stream": "yes"}, "stream is 'yes'; allowed: true or false"),
        ("text-generation", {"inputs": ["a"], "stream": True}, "inputs is a list; allowed with stream: one text"),
        (
            "translation",
            {"inputs": "a", "parameters": {"generation_parameters": {}, "generate_parameters": {}}},
            "parameters has both generate_parameters and its alias",
        ),
    ],
)
def test_a_wrong_body_is_refused_by_the_name_of_the_field(task: str, body: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        read(task, body)

    assert message in str(refused.value)


def test_an_error_about_one_input_of_a_list_carries_its_index_and_keeps_its_class() -> None:
    error = InputTooLongError("inputs has 900 tokens; allowed: at most 512")

    several = named(error, TaskRequest(["a", "b"], is_list=True), 1)

    assert str(several) == "inputs[1] has 900 tokens; allowed: at most 512"
    assert type(several) is InputTooLongError
    assert named(error, TaskRequest(["a"]), 0) is error
