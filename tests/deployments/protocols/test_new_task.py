"""A task of another package: its types are all that the protocols and the document need."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

import pytest
from msgspec import Meta

from deployments.openapi import document
from deployments.protocols.huggingface import read
from deployments.protocols.open_inference import OpenInference, model_metadata
from pipelines.errors import InvalidInputError
from pipelines.schema import Body, Parameters, Text, encode
from pipelines.tasks import TASKS
from pipelines.tasks.task import Example, Head, Task


class Claim(Body, frozen=True):
    claim: Text
    source: Text


class Verdict(TypedDict):
    holds: bool


class ClaimParameters(Parameters, frozen=True):
    strictness: Annotated[int, Meta(ge=0, le=3)] = 1


@pytest.fixture
def task() -> Iterator[Task]:
    made = Task(
        name="claim-checking",
        pipeline=SimpleNamespace(parameters_type=ClaimParameters),
        head=Head("AutoModel", ("ForClaims",), "SEQ_CLS"),
        input_type=Claim,
        answer_type=Verdict,
        title={"en": "Claims", "ko": "주장"},
        summary={"en": "Checks claims.", "ko": "주장을 확인합니다."},
        examples=(Example("en", {"claim": "a", "source": "b"}),),
        columns=("claim", "source", "holds"),
        in_words=str,
        text_fields=Claim.__struct_fields__,
    )
    TASKS.register(made)
    yield made
    del TASKS._tasks[made.name]


def test_its_bodies_are_read_by_its_own_types(task: Task) -> None:
    body: dict[str, Any] = {"inputs": [{"claim": "a", "source": "b"}], "parameters": {"strictness": 3}}
    request = read(task, encode(body))

    assert (list(request.inputs), request.parameters) == ([Claim("a", "b")], ClaimParameters(3))
    with pytest.raises(InvalidInputError, match="parameters.strictness is 4; allowed: 0 to 3"):
        read(task, encode(body | {"parameters": {"strictness": 4}}))


def test_it_is_described_in_the_document_and_to_open_inference_clients(task: Task) -> None:
    found = document("1.0")

    assert "/claim-checking" in found["paths"]
    assert found["components"]["schemas"]["ClaimParameters"]["properties"]["strictness"]["anyOf"][0]["maximum"] == 3
    assert [tensor["name"] for tensor in model_metadata(task)["inputs"]] == ["claim", "source"]


def test_its_tensors_are_its_fields_and_errors_name_them(task: Task) -> None:
    protocol = OpenInference(SimpleNamespace(task=task.name))  # type: ignore[arg-type]
    long = "b" * 300_000

    def column(name: str, text: str) -> dict[str, Any]:
        return {"name": name, "shape": [1], "datatype": "BYTES", "data": [text]}

    request = protocol.read(encode({"inputs": [column("source", long), column("claim", "a")]}), {})
    assert request.inputs == [Claim("a", long)]
    assert request.place(0, "claim") == ("claim", 0)
    with pytest.raises(InvalidInputError, match=r"claim\[0\] is empty; allowed: a text"):
        protocol.read(encode({"inputs": [column("source", "b"), column("claim", "")]}), {})
