"""The OpenAPI 3.1 document of the HTTP API, derived from the classes that parse requests and from the tasks."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

import msgspec
from msgspec import Meta

from deployments.cluster.platform import Platform
from deployments.console.models import ModelPage
from deployments.http.errors import STATUSES
from deployments.protocols.protocol import Operation, modules
from pipelines.schema import Schema, components
from pipelines.tasks import TASKS

DESCRIPTION = "NLP tasks, one URL each. null means the default wherever a value may be left out."
PAGES = (
    Operation("/", "The tasks, their models, and whether they are ready; the console for browsers."),
    Operation("/health", "200 as long as the process is up."),
    Operation("/ready", "200 when every task has a ready replica, else 503 with those that have not."),
    Operation("/live", "What each model does, as server-sent events."),
    Operation("/catalog/{task}", "The default model of a task, its card among the rest.", answers=(ModelPage,)),
    Operation("/catalog/{task}/{model}", "The same of another model of the task.", answers=(ModelPage,)),
    Operation("/openapi.json", "This document."),
)
ERROR_TYPES = sorted({kind for _, kind in STATUSES.values()} | {"internal"})


class Error(msgspec.Struct):
    """What is wrong, where, and what is allowed, in one line."""

    error: str
    error_type: Annotated[str, Meta(extra_json_schema={"enum": ERROR_TYPES})]


def document(version: str, platform: Platform | None = None) -> Schema:
    """The whole document; `version` is Sextet's. The paths of a platform are in that of its container alone."""
    operations: dict[str, list[Operation]] = {}
    for task in TASKS.values():
        for module in modules():
            for operation in module.operations(task, platform):
                operations.setdefault(operation.path, []).append(operation)
    for page in PAGES:
        operations[page.path] = [page]
    kinds = {repr(kind): kind for same in operations.values() for one in same for kind in (one.body, *one.answers)}
    kinds = {name: kind for name, kind in kinds.items() if kind is not None}
    schemas, found = components([Error, *kinds.values()])
    schema_of = dict(zip(kinds, schemas[1:], strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sextet", "version": version, "description": DESCRIPTION},
        "paths": {path: _path(same, schema_of) for path, same in operations.items()},
        "components": {"schemas": found},
    }


def _path(same: Sequence[Operation], schema_of: dict[str, Schema]) -> Schema:
    """One path; several tasks may share it, and each brings its own body."""
    first = same[0]
    named: dict[str, Schema] = {"task": {"enum": list(TASKS)}}
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": named.get(name, {"type": "string"})}
        for name in re.findall(r"{(\w+)}", first.path)
    ]
    parameters = {"parameters": in_path} if in_path else {}
    if first.body is None:
        return {"get": {"summary": first.summary, "responses": _page_responses(first, schema_of), **parameters}}
    content: Schema = {"schema": _any([schema_of[repr(one.body)] for one in same])}
    if first.example is not None and len(same) == 1:
        content["example"] = first.example
    operation: Schema = {
        "operationId": first.path.strip("/").replace("/", "-"),
        "summary": first.summary,
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": _responses(same, schema_of),
    }
    return {"post": operation | parameters}


def _page_responses(page: Operation, schema_of: dict[str, Schema]) -> Schema:
    if not page.answers:
        return {"200": {"description": "OK"}}
    content = {"application/json": {"schema": _any([schema_of[repr(kind)] for kind in page.answers])}}
    return {"200": {"description": "OK", "content": content}, "404": _failure(404), "503": _failure(503)}


def _responses(same: Sequence[Operation], schema_of: dict[str, Schema]) -> Schema:
    answers = [schema_of[repr(kind)] for one in same for kind in one.answers]
    if not answers:
        return {"200": {"description": "OK"}, "default": {"description": "an error in the protocol's shape"}}
    content: Schema = {"application/json": {"schema": _any(answers)}}
    if any(one.streams for one in same):
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "200": {"description": "the answer to one input, or a list of the answers to several", "content": content},
        **{str(status): _failure(status) for status, _ in sorted(STATUSES.values())},
    }


def _any(schemas: Sequence[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def _failure(status: int) -> Schema:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
