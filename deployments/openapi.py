"""The OpenAPI 3.1 document of the HTTP API. A task's parameters come from its pipeline's own dataclass."""

import types
from dataclasses import MISSING, Field, fields
from http import HTTPStatus
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deployments.http.errors import STATUSES
from pipelines.tasks import TASKS
from pipelines.tasks.completion import CompletionParameters
from pipelines.tasks.parameters import Parameters

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
TYPES: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


ENTITY: Schema = {
    "type": "object",
    "description": "entity_group with an aggregation strategy; entity and index without",
    "properties": {
        **dict.fromkeys(("entity_group", "entity", "word"), TEXT),
        **dict.fromkeys(("index", "start", "end"), INTEGER),
        "score": NUMBER,
    },
    "required": ["score", "word", "start", "end"],
}
SPAN = _object(answer={"type": "string"}, score=NUMBER, start=INTEGER, end=INTEGER)
PAIR: Schema = {**_object(text=TEXT, text_pair=TEXT), "required": ["text"]}
GENERATION: Schema = {**_object(generated_text={"type": "string"}, details={"type": "object"})}
GENERATION["required"] = ["generated_text"]

PREDICT: Schema = {
    **_object(
        inputs={"anyOf": [TEXT, _list_of(TEXT), _list_of(_list_of(TEXT))]},
        truncate={"type": "boolean", "default": False},
        raw_scores={"type": "boolean", "default": False},
    ),
    "required": ["inputs"],
}
MESSAGE: Schema = {
    **_object(role={"enum": ["system", "developer", "user", "assistant"]}, content=TEXT, name=TEXT),
    "required": ["role", "content"],
}

INPUTS: dict[str, Schema] = dict.fromkeys(TASKS, TEXT) | {
    "text-classification": {"anyOf": [TEXT, PAIR]},
    "question-answering": _object(question=TEXT, context=TEXT),
}
ANSWERS: dict[str, Schema] = {
    "text-classification": _list_of(_list_of(_object(label=TEXT, score=NUMBER))),
    "question-answering": {"anyOf": [SPAN, _list_of(SPAN)]},
    "token-classification": _list_of(ENTITY),
    "translation": _list_of(_object(translation_text={"type": "string"})),
    "summarization": _list_of(_object(summary_text={"type": "string"})),
    "text-generation": _list_of(GENERATION),
}


def document(version: str) -> Schema:
    """The whole document; `version` is Sextet's."""
    error = _object(error=TEXT, error_type={"enum": sorted({kind for _, kind in STATUSES.values()} | {"internal"})})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sextet", "version": version, "description": "Six NLP tasks, one URL each."},
        "paths": {
            **{f"/{task}": {"post": _operation(task)} for task in TASKS},
            **_open_inference(),
            **_openai(),
            "/text-classification/predict": _plain(
                PREDICT, "text-classification, as text-embeddings-inference answers"
            ),
            "/": _get("The tasks, their models, and whether they are ready; the console for browsers."),
            "/health": _get("200 as long as the process is up."),
            "/ready": _get("200 when every task has a ready replica, else 503 with those that have not."),
            "/openapi.json": _get("This document."),
        },
        "components": {"schemas": {"Error": error}},
    }


def parameters_schema(parameters: type[Parameters]) -> Schema:
    """A task's parameters as JSON Schema: every field is optional, null means the default."""
    hints = get_type_hints(parameters)
    return {
        "type": ["object", "null"],
        "description": " ".join((parameters.__doc__ or "").replace("`", "").split()),
        "properties": {one.name: _field(one, hints[one.name]) for one in fields(parameters)},
        "additionalProperties": False,
    }


def _field(one: "Field[Any]", hint: Any) -> Schema:
    schema = _schema(hint)
    if one.default is not MISSING and one.default is not None:
        schema["default"] = list(one.default) if isinstance(one.default, tuple) else one.default
    return {"anyOf": [schema, {"type": "null"}]}


def _schema(hint: Any) -> Schema:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _schema(next(one for one in get_args(hint) if one is not types.NoneType))
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin is tuple:
        return _list_of(_schema(get_args(hint)[0]))
    return {"type": TYPES.get(hint, "object")}


def _operation(task: str) -> Schema:
    given = INPUTS[task]
    body: dict[str, Schema] = {
        "inputs": {"anyOf": [given, {**_list_of(given), "minItems": 1}]},
        "parameters": parameters_schema(TASKS[task].pipeline.parameters_type),
    }
    content: dict[str, Schema] = {"application/json": {"schema": {"anyOf": [ANSWERS[task], _list_of(ANSWERS[task])]}}}
    if task == "text-generation":
        body["stream"] = {"type": "boolean", "default": False, "description": "one text, answered as events"}
        content["text/event-stream"] = {"schema": {"type": "string"}}
    schema = {**_object(**body), "required": ["inputs"]}
    first = TASKS[task].examples[0]
    example = {"inputs": first.inputs, "parameters": dict(first.parameters)}
    return {
        "operationId": task,
        "summary": f"{task}: one input, or a list of inputs that is answered by a list in the same order",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}},
        "responses": {
            "200": {"description": "the answer to one input, or a list of the answers to several", "content": content},
            **{str(status): _failure(status) for status, _ in sorted(STATUSES.values())},
        },
    }


def _openai() -> dict[str, Schema]:
    """OpenAI's paths; the same at the root, through the gateway."""
    base = "/text-generation/v1"
    common = {"model": TEXT, "stream": {"type": "boolean", "default": False}, "stream_options": {"type": "object"}}
    sampling = parameters_schema(CompletionParameters)["properties"]
    prompts = {"anyOf": [TEXT, _list_of(TEXT), _list_of(INTEGER), _list_of(_list_of(INTEGER))]}
    chat = {"messages": {**_list_of(MESSAGE), "minItems": 1}, "max_completion_tokens": INTEGER}
    return {
        f"{base}/chat/completions": _plain(
            {**_object(**common, **sampling, **chat), "required": ["messages"]}, "OpenAI's chat completions"
        ),
        f"{base}/completions": _plain(
            {**_object(**common, **sampling, prompt=prompts), "required": ["prompt"]}, "OpenAI's completions"
        ),
        f"{base}/models": _get("The model that is loaded, as OpenAI lists models."),
    }


def _open_inference() -> dict[str, Schema]:
    """The Open Inference Protocol's paths; at the root those of all models, through the gateway."""
    tensor = _object(name=TEXT, shape=_list_of(INTEGER), datatype={"enum": ["BYTES"]}, data=_list_of(TEXT))
    request = {**_object(id=TEXT, parameters={"type": "object"}, inputs=_list_of(tensor)), "required": ["inputs"]}
    return {
        "/v2": _get("The server, in the words of the Open Inference Protocol."),
        "/v2/health/live": _get("200 as long as the process is up."),
        "/v2/health/ready": _get("200 when every task has a ready replica, else 503."),
        "/v2/models/{task}": _get("What the model takes and gives.", parameter="task"),
        "/v2/models/{task}/ready": _get("200 when the task answers.", parameter="task"),
        "/v2/models/{task}/infer": _plain(request, "the Open Inference Protocol", parameter="task"),
    }


def _plain(schema: Schema, summary: str, parameter: str | None = None) -> Schema:
    """A POST whose answer another specification describes."""
    operation = {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "OK"}, "default": {"description": "an error in the protocol's shape"}},
    }
    return {"post": operation | _in_path(parameter)}


def _in_path(parameter: str | None) -> Schema:
    if parameter is None:
        return {}
    return {"parameters": [{"name": parameter, "in": "path", "required": True, "schema": {"enum": list(TASKS)}}]}


def _failure(status: int) -> Schema:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def _get(description: str, parameter: str | None = None) -> Schema:
    return {"get": {"summary": description, "responses": {"200": {"description": "OK"}}, **_in_path(parameter)}}
