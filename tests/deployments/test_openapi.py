"""The API's document says what the code does: parameters, defaults, statuses."""

from deployments.http.errors import STATUSES
from deployments.openapi import document
from pipelines.tasks import TASKS


def test_every_task_has_its_parameters_with_their_types_and_defaults() -> None:
    paths = document("1.0")["paths"]

    for task in TASKS:
        schema = paths[f"/{task}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        names = set(schema["properties"]["parameters"]["properties"])
        assert names == set(TASKS[task].pipeline.parameters_type.__struct_fields__)
    questions = paths["/question-answering"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert questions["properties"]["parameters"]["properties"]["max_answer_len"] == {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 512, "default": 15}, {"type": "null"}]
    }


def test_every_status_that_an_error_can_have_is_documented() -> None:
    for task in TASKS:
        responses = document("1.0")["paths"][f"/{task}"]["post"]["responses"]

        assert set(responses) == {"200", *(str(status) for status, _ in STATUSES.values())}
