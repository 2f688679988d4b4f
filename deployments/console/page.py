"""The console: a page for browsers. It uses the public HTTP API only, and nothing from elsewhere.

`tasks.json` is the registry of tasks as JSON; the page derives everything that differs between tasks from it.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from starlette.responses import Response

from deployments.protocols.openai.chat import ChatBody
from pipelines.schema import Body, Parameters, components
from pipelines.tasks import TASKS
from pipelines.tasks.task import Example, Task

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
FILES = {one.name: one for one in Path(__file__).parent.iterdir() if one.suffix in MEDIA_TYPES}
TASKS_JSON = "tasks.json"
CHAT_FORM = ("max_tokens", "temperature", "top_p", "seed", "response_format", "tools", "tool_choice")
_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "born": {"type": "integer"}},
    "required": ["name", "born"],
    "additionalProperties": False,
}
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
_WEATHER = {"name": "weather", "description": "The weather in a city.", "parameters": _CITY}
DOCUMENTS: Mapping[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}},
    "grammar": {"type": "json", "value": _PERSON},
    "tools": [{"type": "function", "function": _WEATHER}],
}
"""Parameters that are JSON documents, each with an example."""
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


def page(name: str) -> Response | None:
    """One of the console's files; None where there is none of that name."""
    if name == TASKS_JSON:
        return Response(_tasks_json(), headers=HEADERS, media_type="application/json")
    if name not in FILES:
        return None
    return Response(_content(name), headers=HEADERS, media_type=MEDIA_TYPES[FILES[name].suffix])


def tasks() -> list[dict[str, Any]]:
    """What the page shows of each task: its names and summaries by language, and its forms.

    A form is one way to ask: with a chat message (`kind` "chat"), or with the task's own texts ("inputs").
    """
    return [
        {
            "name": task.name,
            "title": dict(task.title),
            "summary": dict(task.summary),
            "client": task.client,
            "forms": [*_chat(task), _inputs(task)],
        }
        for task in TASKS.values()
    ]


def _inputs(task: Task) -> dict[str, Any]:
    return {
        "kind": "inputs",
        "path": task.name,
        "fields": list(task.text_fields),
        "examples": [_example(one, task.texts(one)) for one in task.examples],
        "parameters": _parameters(task.pipeline.parameters_type, task.form),
        "streams": task.streams,
    }


def _chat(task: Task) -> list[dict[str, Any]]:
    if not task.chats:
        return []
    return [
        {
            "kind": "chat",
            "path": f"{task.name}/v1/chat/completions",
            "fields": ["message"],
            "examples": [_example(one, {"message": one.inputs}) for one in task.chats],
            "parameters": _parameters(ChatBody, CHAT_FORM),
            "streams": True,
        }
    ]


def _example(example: Example, texts: dict[str, str]) -> dict[str, Any]:
    return {"language": example.language, "texts": texts, "parameters": dict(example.parameters)}


def _parameters(parameters: type[Parameters | Body], form: Sequence[str] | None) -> list[dict[str, Any]]:
    """The parameters of a form: name, kind, choices or bounds, default.

    A dotted name (`generate_parameters.max_new_tokens`) stands under another parameter.
    """
    schemas = components([parameters])[1][parameters.__name__]["properties"]
    names = list(schemas) if form is None else form
    described = [{"name": name, **_control(name, schemas[name.rpartition(".")[2]])} for name in names]
    return [one for one in described if one["kind"] is not None]


def _control(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """What a form needs to know of a parameter, from its JSON Schema; `kind` None: no control holds such a value."""
    if name in DOCUMENTS:
        return {"kind": "json", "default": None, "example": DOCUMENTS[name]}
    options = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null" and "$ref" not in one]
    one = options[0] if len(options) == 1 else {}
    default = one.get("default", schema.get("default"))
    if "enum" in one:
        return {"kind": "choice", "choices": one["enum"], "default": default}
    if one.get("type") == "boolean":
        return {"kind": "choice", "choices": [True, False], "default": default}
    if one.get("type") in ("integer", "number"):
        least, most = one.get("minimum", one.get("exclusiveMinimum")), one.get("maximum", one.get("exclusiveMaximum"))
        return {"kind": one["type"], "minimum": least, "maximum": most, "default": default}
    return {"kind": "text" if one.get("type") == "string" else None, "default": default}


@cache
def _tasks_json() -> bytes:
    return json.dumps(tasks(), ensure_ascii=False).encode()


@cache
def _content(name: str) -> bytes:
    return FILES[name].read_bytes()
