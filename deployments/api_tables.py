"""The table of tasks in docs/http_api.md, from the schemas of /openapi.json and the docstrings of the parameters.

python -m deployments.api_tables        rewrites the page
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

from deployments.openapi import document
from pipelines.tasks import TASKS
from pipelines.tasks.generator import SearchParameters

PAGE = Path(__file__).parents[1] / "docs" / "http_api.md"
BEGIN, END = "<!-- begin: python -m deployments.api_tables -->\n", "<!-- end -->\n"
HIDDEN = ("watermark", "adapter_id", "grammar")
"""Accepted with their neutral values only."""
Schema = dict[str, Any]


def tables() -> str:
    """One row a task, and one for each group of tasks that take the same arguments of `model.generate`."""
    api = _Api(document(""))
    rows = [["task", "one input", "parameters (default)", "answer to one input"], ["---"] * 4]
    decoding = set(get_type_hints(SearchParameters))
    groups: dict[str, list[str]] = {}
    for task in TASKS:
        parameters = api.parameters(task)
        elsewhere = decoding.union(HIDDEN) if TASKS[task].generates else ()
        own = [f"`{name}`{_values(schema)}" for name, schema in parameters.items() if name not in elsewhere]
        rows.append([task, api.shape(api.input(task)), "; ".join(own), api.shape(api.answer(task))])
    for name in get_type_hints(SearchParameters):
        taking = {
            task: api.parameters(task) for task in TASKS if TASKS[task].generates and name in api.parameters(task)
        }
        values = next(iter(taking.values()))[name]
        groups.setdefault(", ".join(taking), []).append(f"`{name}`{_values(values)}")
    rows += [[f"{tasks}, too", "", "; ".join(names), ""] for tasks, names in groups.items()]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return table + "\n" + "".join(f"* {task}: {_remarks(task)}\n" for task in TASKS)


def _remarks(task: str) -> str:
    return " ".join((TASKS[task].pipeline.parameters_type.__doc__ or "").split())


def rewritten(page: str) -> str:
    """`page` with the tables as they are now."""
    return re.sub(f"(?<={BEGIN}).*(?={END})", lambda _: tables(), page, count=1, flags=re.DOTALL)


class _Api:
    """What an OpenAPI document says of the tasks."""

    def __init__(self, content: Schema) -> None:
        self._content = content

    def input(self, task: str) -> Schema:
        return self._body(task)["inputs"]["anyOf"][0]  # type: ignore[no-any-return]

    def parameters(self, task: str) -> dict[str, Schema]:
        return {name: self._only(one) for name, one in self._only(self._body(task)["parameters"])["properties"].items()}

    def answer(self, task: str) -> Schema:
        found = self._content["paths"][f"/{task}"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        return self._resolved(found)["anyOf"][0]  # type: ignore[no-any-return]

    def shape(self, schema: Schema) -> str:
        """A value as people write it: a text, `{"key", ...}`, or a list of these."""
        kinds = {self._shape(one): None for one in _options(schema)}
        return " or ".join(one if one == "a text" else f"`{one}`" for one in kinds)

    def _shape(self, schema: Schema) -> str:
        schema = self._resolved(schema)
        if schema.get("type") == "array":
            (item,) = {self._shape(one) for one in _options(schema["items"])}
            return f"[{item}{'' if item.startswith('[') else ', ...'}]"
        if schema.get("type") == "string":
            return "a text"
        required = schema.get("required", ())
        keys = [f'"{name}"' if name in required else f'"{name}"?' for name in schema["properties"]]
        return f"{{{', '.join(keys)}}}"

    def _body(self, task: str) -> dict[str, Schema]:
        operation = self._content["paths"][f"/{task}"]["post"]
        schema = self._resolved(operation["requestBody"]["content"]["application/json"]["schema"])
        return schema["properties"]  # type: ignore[no-any-return]

    def _only(self, schema: Schema) -> Schema:
        """What a value that is not null has to be."""
        schema = self._resolved(schema)
        options = [self._resolved(one) for one in _options(schema)]
        return {**schema, **options[0]} if len(options) == 1 else schema

    def _resolved(self, schema: Schema) -> Schema:
        while (reference := schema.get("$ref")) is not None:
            schema = self._content
            for key in reference.removeprefix("#/").split("/"):
                schema = schema[key]
        return schema


def _options(schema: Schema) -> list[Schema]:
    return [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]


def _values(schema: Schema) -> str:
    """Choices or bounds of a parameter, and its default."""
    shown = "" if schema.get("default") in (None, [], {}) else f" ({_literal(schema['default'])})"
    if "enum" in schema:
        return f" {', '.join(map(_literal, schema['enum']))}{shown}"
    least, most = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    if above is not None:
        bounds = f" above {above}" + (f" to {most}" if most is not None else "")
    elif least is not None:
        bounds = f" {least} to {most}" if most is not None else f" from {least}"
    else:
        bounds = ""
    return f"{bounds}{shown}"


def _literal(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"[{', '.join(_literal(one) for one in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
