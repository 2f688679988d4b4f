"""All six tasks through the ingress: the public client unmodified, raw lists, bad bodies, streams."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipelines
from deployments.ask import post
from evaluation.evaluate import EvaluateArgs, evaluate
from pipelines.tasks import TASKS
from tests.cluster.serving import Serving
from tests.evaluation.labelled import ROWS

pytestmark = pytest.mark.cluster
Client = Callable[[str], Any]  # an InferenceClient for a task; its methods return unions that a test has to tell apart

TEXT = "Anna Smith found a letter in Paris. 정말 재미있는 영화였어요 😀"
QUESTION = {"question": "Who found a letter?", "context": TEXT}
SHORT = {"generate_parameters": {"max_new_tokens": 8}}
SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 9) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
WORDS = st.sampled_from(["simple", "first", "max", "softmax", "none", "en", "longest_first", "."]) | st.text(max_size=3)
NAMES = st.sampled_from(["max_new_tokens", "num_beams", "do_sample", "temperature", "top_k", "x"])
VALUES = SCALARS | WORDS | st.lists(SCALARS | WORDS, max_size=3) | st.dictionaries(NAMES, SCALARS, max_size=3)
PARAMETERS: dict[str, dict[str, Any]] = {
    "translation": SHORT,
    "summarization": SHORT,
    "text-generation": {"max_new_tokens": 8, "do_sample": False},
    "token-classification": {"aggregation_strategy": "simple"},
}


@pytest.fixture(scope="module")
def http(cluster: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(cluster: Serving) -> Client:
    return lambda task: InferenceClient(model=f"{cluster.url}/{task}", timeout=60)


def asked(task: str) -> Any:
    return QUESTION if task == "question-answering" else TEXT


def approximately(answer: Any) -> Any:
    """The answer with its numbers compared loosely: the batch that carried it may have had another shape."""
    if isinstance(answer, dict):
        return {key: approximately(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [approximately(one) for one in answer]
    return pytest.approx(answer, abs=1e-4) if isinstance(answer, float) else answer


@pytest.fixture(scope="module")
def in_process(models: dict[str, Path]) -> Callable[..., Any]:
    """`in_process(task, input, **parameters)`: what the same artifact answers without a server."""
    loaded = {task: pipelines.load(path) for task, path in models.items()}

    def answer(task: str, given: Any, **parameters: Any) -> Any:
        pipeline = loaded[task]
        return pipeline(given, **({"top_k": None} if task == "text-classification" else {}), **parameters)

    return answer


@pytest.mark.parametrize("task", TASKS)
def test_one_input_and_a_list_are_answered_as_in_process(
    http: httpx.Client, in_process: Callable[..., Any], task: str
) -> None:
    parameters = PARAMETERS.get(task, {})
    expected = in_process(task, asked(task), **parameters)

    one = http.post(f"/{task}", json={"inputs": asked(task), "parameters": parameters})
    many = http.post(f"/{task}/", json={"inputs": [asked(task)] * 3, "parameters": parameters})

    assert (one.status_code, many.status_code) == (200, 200), (one.text, many.text)
    single = [expected] if task == "text-classification" else expected
    assert one.json() == approximately(single)
    assert many.json() == approximately([expected] * 3)


def test_the_public_client_classifies(client: Client, in_process: Callable[..., Any]) -> None:
    expected = in_process("text-classification", TEXT)

    everything = client("text-classification").text_classification(TEXT)
    best = client("text-classification").text_classification(TEXT, top_k=1, function_to_apply="none")

    assert [dict(one) for one in everything] == approximately(expected)
    assert [one.label for one in best] == [expected[0]["label"]]


def test_the_public_client_asks_questions(client: Client, in_process: Callable[..., Any]) -> None:
    expected = in_process("question-answering", QUESTION)

    one = client("question-answering").question_answering(**QUESTION)
    three = client("question-answering").question_answering(**QUESTION, top_k=3, align_to_words=False)

    assert (one.answer, one.start, one.end) == (expected["answer"], expected["start"], expected["end"])
    assert one.score == pytest.approx(expected["score"], abs=1e-4)
    assert len(three) == 3


def test_the_public_client_finds_entities(client: Client, in_process: Callable[..., Any]) -> None:
    expected = in_process("token-classification", TEXT, aggregation_strategy="simple")

    found = client("token-classification").token_classification(TEXT, aggregation_strategy="simple")

    assert [(one.entity_group, one.word, one.start, one.end) for one in found] == [
        (one["entity_group"], one["word"], one["start"], one["end"]) for one in expected
    ]


def test_the_public_client_translates_and_summarizes(client: Client, in_process: Callable[..., Any]) -> None:
    translated = client("translation").translation(TEXT, **SHORT)
    summarized = client("summarization").summarization(TEXT, **SHORT)

    assert translated.translation_text == in_process("translation", TEXT, **SHORT)[0]["translation_text"]
    assert summarized.summary_text == in_process("summarization", TEXT, **SHORT)[0]["summary_text"]


def test_the_public_client_generates_streams_and_gets_details(client: Client) -> None:
    generate = client("text-generation").text_generation

    text = generate(TEXT, max_new_tokens=6, do_sample=False)
    detailed = generate(TEXT, max_new_tokens=6, do_sample=False, details=True)
    pieces = list(generate(TEXT, max_new_tokens=6, do_sample=False, stream=True))
    events = list(generate(TEXT, max_new_tokens=6, do_sample=False, stream=True, details=True))

    assert detailed.generated_text == text
    assert detailed.details.generated_tokens == len(pieces) == len(events)
    assert events[-1].generated_text == text
    assert [event.token.id for event in events] == [token.id for token in detailed.details.tokens]


def test_the_public_client_drops_a_parameter_that_no_model_here_honours(
    client: Client,
) -> None:
    with pytest.warns(UserWarning, match="watermark"):
        assert client("text-generation").text_generation(TEXT, max_new_tokens=4, do_sample=False, watermark=True)


def test_a_stream_is_events_of_which_only_the_last_has_the_text(http: httpx.Client) -> None:
    body = {"inputs": TEXT, "stream": True, "parameters": {"max_new_tokens": 5, "do_sample": False}}

    with http.stream("POST", "/text-generation", json=body) as response:
        lines = [line for line in response.iter_lines() if line]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert float(response.headers["x-total-time"]) > 0
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["generated_text"] is None for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1]["details"]["generated_tokens"] == len(events)


@pytest.mark.parametrize("task", TASKS)
def test_bad_bodies_are_refused_and_the_replica_lives_on(http: httpx.Client, task: str) -> None:
    good = {"inputs": asked(task), "parameters": PARAMETERS.get(task, {})}
    wrong_inputs: list[Any] = [None, 3, "", [], {}, [3], [None], {"a": 1}, [[]]]
    bodies: list[Any] = [
        b"",
        b"{",
        b'{"inputs": NaN}',
        b'{"inputs": "\xff"}',
        *({"inputs": wrong} for wrong in wrong_inputs),
        {"inputs": asked(task), "parameters": {"no_such_parameter": 1}},
        {"inputs": asked(task), "parameters": []},
        {"inputs": asked(task), "no_such_key": 1},
    ]
    for body in bodies:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = http.post(f"/{task}", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400, (body, response.text)
        assert response.json()["error_type"] == "validation"
        assert response.json()["error"]

    assert http.post(f"/{task}", json=good).status_code == 200


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_parameters_are_it_is_never_our_fault(http: httpx.Client, task: str, data: st.DataObject) -> None:
    names = sorted(TASKS[task].pipeline.parameters_type.__struct_fields__)
    parameters = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))

    response = http.post(
        f"/{task}",
        json={"inputs": asked(task), "parameters": parameters},
        headers={"x-request-timeout-seconds": "20"},
    )

    assert response.status_code in (200, 400, 422), (parameters, response.text)


def test_many_clients_at_once_get_their_own_answers(http: httpx.Client, in_process: Callable[..., Any]) -> None:
    texts = [f"{'word ' * (index % 40)}number {index}" for index in range(60)]

    def ask(text: str) -> Any:
        return http.post("/text-classification", json={"inputs": text, "parameters": {"top_k": 1}}).json()

    with ThreadPoolExecutor(16) as workers:
        answers = list(workers.map(ask, texts))

    for text, answer in zip(texts, answers, strict=True):
        assert answer == [[approximately(in_process("text-classification", text)[0])]]


@pytest.mark.parametrize("task", TASKS)
def test_a_running_task_is_measured_as_its_artifact_is(
    task: str, cluster: Serving, models: dict[str, Path], tmp_path: Path
) -> None:
    """The URL, the real HTTP and the real answers; `sextet evaluate` itself."""
    data = tmp_path / "rows.jsonl"
    rows = [row | ({"label": "positive"} if "label" in row else {}) for row in ROWS[task]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    parameters = {"max_new_tokens": 8} if task in ("translation", "summarization") else {}
    args = EvaluateArgs((str(models[task]), f"{cluster.url}/{task}"), str(data), parameters=parameters, resamples=5)
    artifact, served = evaluate(args, post, lambda _line: None, write_down=False).scores.values()
    assert {name: value for name, (value, *_) in served.items()} == pytest.approx(
        {name: value for name, (value, *_) in artifact.items()}, abs=1e-3
    )
