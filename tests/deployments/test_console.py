"""The console: what its page derives from the registry of tasks."""

import json
from pathlib import Path

import pytest

from deployments.console import page as console
from deployments.console.page import DOCUMENTS, page, tasks
from deployments.protocols.openai.chat import ChatBody
from pipelines.schema import decode
from pipelines.tasks import TASKS


def test_no_script_of_the_page_names_a_task() -> None:
    scripts = {name: path.read_text(encoding="utf-8") for name, path in console.FILES.items() if name.endswith(".js")}

    assert len(scripts) == 8
    assert not [(name, task) for name, script in scripts.items() for task in TASKS if f'"{task}"' in script]


def test_the_page_is_served_from_its_own_folder_only() -> None:
    folder = Path(console.__file__).parent
    for path in folder.iterdir():
        assert (page(path.name) is None) == (path.suffix not in console.MEDIA_TYPES)
    served = page("tasks.json")
    assert served is not None
    assert json.loads(bytes(served.body)) == tasks()


@pytest.mark.parametrize("task", TASKS)
def test_a_form_has_what_its_task_takes(task: str) -> None:
    (shown,) = [one for one in tasks() if one["name"] == task]

    (form,) = [one for one in shown["forms"] if one["kind"] == "inputs"]
    assert form["fields"] == list(TASKS[task].text_fields)
    assert {one["language"] for one in form["examples"]} == {"en", "ko"}
    assert set(shown["title"]) == set(shown["summary"]) == {"en", "ko"}
    names = TASKS[task].pipeline.parameters_type.__struct_fields__
    assert {one["name"].split(".")[0] for one in form["parameters"]} <= set(names)
    for example in form["examples"]:  # what the form shows is what the pipeline accepts
        assert set(example["texts"]) == set(form["fields"])
        TASKS[task].pipeline.parameters_type.from_mapping(example["parameters"])


def test_controls_follow_from_the_types_of_parameters() -> None:
    shown = {one["name"]: one["forms"] for one in tasks()}

    (entities,) = shown["token-classification"]
    assert entities["parameters"][0] == {
        "name": "aggregation_strategy",
        "kind": "choice",
        "choices": ["average", "first", "max", "none", "simple"],
        "default": None,
    }
    (summary,) = shown["summarization"]
    assert [one["kind"] for one in summary["parameters"]] == ["choice", "integer"]
    assert summary["parameters"][1]["name"] == "generate_parameters.max_new_tokens"
    chat, _ = shown["text-generation"]
    assert (chat["kind"], chat["path"]) == ("chat", "text-generation/v1/chat/completions")
    assert [one["kind"] for one in chat["parameters"]] == [*("integer", "number", "number", "integer"), *_DOCUMENTS]
    assert chat["parameters"][-1]["choices"] == ["auto", "none", "required"]


_DOCUMENTS = ("json", "json", "choice")


def test_the_examples_of_documents_are_taken() -> None:
    asked = {"messages": [{"role": "user", "content": "a"}], **DOCUMENTS}
    grammar = asked.pop("grammar")

    assert decode(json.dumps(asked).encode(), ChatBody).constraint is not None
    assert TASKS["text-generation"].pipeline.parameters_type.from_mapping({"grammar": grammar})
