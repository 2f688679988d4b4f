"""Every body that the generator sends is one that the server's own parsers accept."""

import json
from typing import Any

import pytest

from benchmarks.load.bodies import BodyConfig, calls
from deployments.protocols import huggingface
from deployments.protocols.protocol import TaskRequest
from pipelines.errors import ConfigurationError
from pipelines.tasks import TASKS

TEXTS = ["The bridge was built in 1894.", "정말 재미있는 영화였어요", 'a "quoted" text']


def parsed(task: str, request: bytes) -> TaskRequest:
    head, body = request.split(b"\r\n\r\n", 1)
    assert head.startswith(f"POST /{task} HTTP/1.1".encode())
    return huggingface.read(TASKS[task], body)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("inputs_per_request", [1, 2])
def test_the_bodies_of_each_task_are_parsed_by_its_pipeline(task: str, inputs_per_request: int) -> None:
    cls: Any = TASKS[task].pipeline
    pipeline = object.__new__(cls)  # parsing needs no model

    made = calls("127.0.0.1:8000", "", TASKS[task], TEXTS, inputs_per_request, BodyConfig())

    assert [call.n_inputs for call in made] == ([1, 1, 1] if inputs_per_request == 1 else [2, 1])
    for call in made:
        request = parsed(task, call.request)
        assert len(request.inputs) == call.n_inputs
        assert [pipeline.parse(one) for one in request.inputs]
        assert isinstance(request.parameters, cls.parameters_type)


def test_a_streaming_body_asks_for_events_and_for_parameters_of_its_own() -> None:
    config = BodyConfig(stream=True, max_new_tokens=8, parameters={"details": True})
    (call,) = calls("127.0.0.1:8000", "", TASKS["text-generation"], TEXTS[:1], 1, config)

    request = parsed("text-generation", call.request)

    assert request.stream
    given = {"max_new_tokens": 8, "do_sample": False, "details": True}
    assert request.parameters == TASKS["text-generation"].pipeline.parameters_type(**given)


def test_only_text_generation_streams() -> None:
    with pytest.raises(ConfigurationError, match="--stream"):
        calls("127.0.0.1:8000", "", TASKS["translation"], TEXTS, 1, BodyConfig(stream=True))


def test_openais_bodies_are_greedy_completions_of_a_known_length() -> None:
    config = BodyConfig(protocol="openai", stream=True, max_new_tokens=8)
    (call,) = calls("127.0.0.1:8000", "", TASKS["text-generation"], TEXTS[:1], 1, config)

    head, _, body = call.request.partition(b"\r\n\r\n")

    assert head.startswith(b"POST /text-generation/v1/completions HTTP/1.1")
    expected = {"model": "sextet", "prompt": TEXTS[0], "max_tokens": 8, "temperature": 0, "stream": True}
    assert json.loads(body) == expected
    with pytest.raises(ConfigurationError, match="allowed for translation: huggingface"):
        calls("127.0.0.1:8000", "", TASKS["translation"], TEXTS, 1, BodyConfig(protocol="openai"))
