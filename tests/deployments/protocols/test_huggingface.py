"""The Hugging Face protocol as pure functions: every body is a request or an error that names the field."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.config import LimitsConfig
from deployments.http.errors import BodyTooLargeError
from deployments.protocols.huggingface import read, write
from deployments.protocols.protocol import TaskRequest
from pipelines.errors import InputTooLongError, InvalidInputError
from pipelines.schema import Parameters, encode
from pipelines.tasks import TASKS
from pipelines.tasks.generator import SearchParameters

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["inputs", "parameters", "options", "stream", "input", ""])


def asked(task: str, body: Any) -> TaskRequest:
    return read(TASKS[task], encode(body))


@given(task=st.sampled_from(list(TASKS)), body=JSON | st.dictionaries(KEYS, JSON, max_size=4))
def test_every_body_is_a_request_or_an_error_of_one_line(task: str, body: Any) -> None:
    try:
        outcome: TaskRequest | str = asked(task, body)
    except InvalidInputError as error:
        outcome = str(error)

    if isinstance(outcome, TaskRequest):
        assert outcome.inputs
        assert isinstance(outcome.parameters, Parameters)
    else:
        assert "allowed" in outcome or "model_kwargs" in outcome
        assert len(outcome) < 400
        assert "\n" not in outcome


def test_a_list_is_answered_by_a_list_of_the_single_answers() -> None:
    one, many = asked("translation", {"inputs": "a"}), asked("translation", {"inputs": ["a", "b"]})
    answers = [[{"translation_text": "A"}], [{"translation_text": "B"}]]

    assert write(TASKS["translation"], one, answers[:1]) == answers[0]
    assert write(TASKS["translation"], many, answers) == answers


def test_the_labels_of_one_text_are_nested_and_those_of_a_list_once() -> None:
    task = "text-classification"
    one, many = asked(task, {"inputs": "a"}), asked(task, {"inputs": ["a", "b"]})
    labels = [{"label": "x", "score": 1.0}]

    assert write(TASKS[task], one, [labels]) == [labels]
    assert write(TASKS[task], many, [labels, labels]) == [labels, labels]


def test_one_question_is_answered_by_one_object() -> None:
    task = TASKS["question-answering"]
    request = asked(task.name, {"inputs": {"question": "q", "context": "c"}})

    assert request.inputs == [task.input_type("q", "c")]
    assert write(task, request, [{"answer": "c"}]) == {"answer": "c"}


def test_generation_parameters_is_another_name_of_generate_parameters() -> None:
    body = {"inputs": "a", "parameters": {"generation_parameters": {"num_beams": 2}}}

    assert asked("translation", body).parameters.generate_parameters == SearchParameters(num_beams=2)
    assert asked("translation", body).parameters.generation_parameters is None


def test_options_that_hold_by_themselves_are_accepted_and_others_are_not() -> None:
    options = {"use_cache": False, "wait_for_model": True}
    assert asked("translation", {"inputs": "a", "options": options}).inputs == ["a"]
    with pytest.raises(InvalidInputError, match="options has no key 'use_gpu'.*; allowed: use_cache, wait_for_model"):
        asked("translation", {"inputs": "a", "options": {"use_gpu": True}})


@pytest.mark.parametrize(
    ("task", "body", "message"),
    [
        ("translation", [1], "the body is [1]; allowed: an object with inputs and perhaps parameters"),
        ("translation", {"text": "a"}, "the body has no key 'text'; allowed: inputs, options, parameters"),
        ("translation", {"input": "a"}, "the body has no key 'input' (did you mean 'inputs'?); allowed: inputs, op"),
        ("translation", {}, "inputs is missing; allowed: a text or a list of those"),
        ("translation", {"inputs": None}, "inputs is null; allowed: a text or a list of those"),
        ("translation", {"inputs": ""}, "inputs is empty; allowed: a text"),
        ("translation", {"inputs": []}, "inputs is empty; allowed: at least one element"),
        ("translation", {"inputs": ["a", ""]}, "inputs[1] is empty; allowed: a text"),
        ("translation", {"inputs": "a", "parameters": 3}, "parameters is 3; allowed: an object"),
        ("translation", {"inputs": "a", "stream": True}, "the body has no key 'stream'"),
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
        asked(task, body)

    assert message in str(refused.value)


def test_an_input_stands_at_its_index_where_it_came_in_a_list() -> None:
    one, several = asked("translation", {"inputs": "a"}), asked("translation", {"inputs": ["a", "b"]})

    assert one.place(0, "text") == ("inputs", "text")
    assert several.place(1) == ("inputs", 1)


@pytest.mark.parametrize(
    ("task", "body", "limits", "error", "message"),
    [
        (
            "translation",
            {"inputs": ["a"] * 3},
            {"max_inputs": 2},
            BodyTooLargeError,
            "inputs has 3 elements; allowed: ",
        ),
        (
            "translation",
            {"inputs": ["a", "abcd"]},
            {"max_input_characters": 3},
            InputTooLongError,
            "inputs[1] has 4 characters; allowed: at most 3",
        ),
        (
            "question-answering",
            {"inputs": {"question": "ab", "context": "cd"}},
            {"max_input_characters": 3},
            InputTooLongError,
            "inputs has 4 characters; allowed: at most 3",
        ),
        (
            "translation",
            {"inputs": "\ufdfa" * 3},
            {"max_input_characters": 20},
            InputTooLongError,
            "inputs has more than 20 characters after NFKC; allowed: at most 20",
        ),
        (
            "translation",
            {"inputs": ["abc", "def", "ghi"]},
            {"max_request_characters": 8},
            BodyTooLargeError,
            "inputs has more characters in all; allowed: at most 8 in one request",
        ),
        (
            "text-generation",
            {"inputs": ["a"] * 3, "parameters": {"best_of": 4}},
            {"max_rows": 11},
            BodyTooLargeError,
            "inputs has 3 elements of 4 sequences each; allowed: at most 11 sequences in all",
        ),
        (
            "translation",
            {"inputs": ["a"] * 3, "parameters": {"num_beams": 4, "generate_parameters": {"num_return_sequences": 2}}},
            {"max_rows": 11},
            BodyTooLargeError,
            "inputs has 3 elements of 4 sequences each; allowed: at most 11 sequences in all",
        ),
    ],
)
def test_more_than_one_request_may_hold_is_refused_by_name(
    task: str, body: Any, limits: dict[str, int], error: type[Exception], message: str
) -> None:
    request = asked(task, body)

    request.check(LimitsConfig())
    with pytest.raises(error) as refused:
        request.check(LimitsConfig(**limits))
    assert str(refused.value).startswith(message)


def test_a_body_of_plain_text_is_within_the_default_limits() -> None:
    asked("translation", {"inputs": ["a" * 200_000] * 20}).check(LimitsConfig())
    asked("translation", {"inputs": ["힣" * 65_000] * 20}).check(LimitsConfig())


def test_a_text_that_normalization_makes_eighteen_times_as_long_is_refused_in_milliseconds() -> None:
    request = asked("translation", {"inputs": "\ufdfa" * 200_000})
    started_at = time.process_time()

    with pytest.raises(InputTooLongError, match="inputs has more than 200000 characters after NFKC"):
        request.check(LimitsConfig())

    assert time.process_time() - started_at < 0.1
