"""The API's document says what the code does: parameters, defaults, statuses."""

from typing import Any

import pytest

from deployments.cluster.platform import NAMES, Platform
from deployments.http.errors import STATUSES
from deployments.openapi import document
from pipelines.tasks import TASKS


def resolved(found: dict[str, Any], schema: dict[str, Any]) -> Any:
    return found["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def schema_of(found: dict[str, Any], path: dict[str, Any]) -> Any:
    return resolved(found, path["post"]["requestBody"]["content"]["application/json"]["schema"])


def test_every_task_has_its_parameters_with_their_types_and_defaults() -> None:
    found = document("1.0")
    paths = found["paths"]

    for task in TASKS:
        parameters = schema_of(found, paths[f"/{task}"])["properties"]["parameters"]["anyOf"][0]
        names = set(resolved(found, parameters)["properties"])
        assert names == set(TASKS[task].pipeline.parameters_type.__struct_fields__)
    questions = schema_of(found, paths["/question-answering"])["properties"]["parameters"]["anyOf"][0]
    assert resolved(found, questions)["properties"]["max_answer_len"] == {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 512, "default": 15}, {"type": "null"}]
    }


def test_every_status_that_an_error_can_have_is_documented() -> None:
    for task in TASKS:
        responses = document("1.0")["paths"][f"/{task}"]["post"]["responses"]

        assert set(responses) == {"200", *(str(status) for status, _ in STATUSES.values())}


def test_the_page_of_a_model_has_its_parameters_and_the_type_of_its_answer() -> None:
    found = document("1.0")
    page = found["paths"]["/catalog/{task}/{model}"]["get"]

    assert {one["name"]: one["schema"] for one in page["parameters"]} == {
        "task": {"enum": list(TASKS)},
        "model": {"type": "string"},
    }
    answer = resolved(found, page["responses"]["200"]["content"]["application/json"]["schema"])
    assert {"share", "replicas", "model"} <= answer["properties"].keys()
    assert {"200", "404", "503"} == page["responses"].keys()
    assert "parameters" not in found["paths"]["/live"]["get"]


@pytest.mark.parametrize("name", NAMES)
def test_a_predict_route_is_documented_where_its_platform_is_served_and_only_there(name: str) -> None:
    platform = Platform.of(name, {"AIP_PREDICT_ROUTE": "/asked"})

    gateways, containers = set(document("1.0")["paths"]), set(document("1.0", platform)["paths"])

    assert containers - gateways == {platform.predict_route}
    assert not [path for path in gateways if "invocations" in path or "aip" in path]
