"""The table of tasks in docs/http_api.md, from the types of the registry.

python -m deployments.api_tables        rewrites the page
"""

import re
from pathlib import Path
from typing import Any

from pipelines.schema import Schema, components
from pipelines.tasks import TASKS
from pipelines.tasks.generator import SearchParameters
from pipelines.tasks.task import Task

PAGE = Path(__file__).parents[1] / "docs" / "http_api.md"
BEGIN, END = "<!-- begin: python -m deployments.api_tables -->\n", "<!-- end -->\n"
HIDDEN = ("watermark", "adapter_id", "grammar")
"""Accepted with their neutral values only."""
UNBOUNDED, NEGLIGIBLE = 1e9, 1e-6
"""Bounds beyond these keep numbers in the range of their type, which tells a reader nothing."""


def tables() -> str:
    """One row a task, one for each group of tasks that take the same arguments of `model.generate`, and the remarks."""
    rows = [["task", "one input", "parameters (default)", "answer to one input"], ["---"] * 4]
    decoding = set(SearchParameters.__struct_fields__)
    groups: dict[str, list[str]] = {}
    for name, task in TASKS.items():
        parameters = _parameters(task)
        elsewhere = decoding.union(HIDDEN) if task.generates else ()
        own = [f"`{one}`{_values(schema)}" for one, schema in parameters.items() if one not in elsewhere]
        answer = list[task.answer_type] if task.wraps_answer else task.answer_type  # type: ignore[name-defined]
        rows.append([name, _shape(task.input_type), "; ".join(own), _shape(answer)])
    for one in SearchParameters.__struct_fields__:
        taking = [task for task in TASKS.values() if task.generates and one in _parameters(task)]
        names = ", ".join(task.name for task in taking)
        groups.setdefault(names, []).append(f"`{one}`{_values(_parameters(taking[0])[one])}")
    rows += [[f"{tasks}, too", "", "; ".join(names), ""] for tasks, names in groups.items()]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return table + "\n" + "".join(f"* {name}: {_remarks(task)}\n" for name, task in TASKS.items())


def rewritten(page: str) -> str:
    """`page` with the tables as they are now."""
    return re.sub(f"(?<={BEGIN}).*(?={END})", lambda _: tables(), page, count=1, flags=re.DOTALL)


def _parameters(task: Task) -> dict[str, Schema]:
    kind = task.pipeline.parameters_type
    properties: dict[str, Schema] = components([kind])[1][kind.__name__]["properties"]
    return properties


def _remarks(task: Task) -> str:
    return " ".join((task.pipeline.parameters_type.__doc__ or "").split())


def _shape(kind: Any) -> str:
    """A value as people write it: a text, `{"key", ...}`, or a list of these."""
    (schema,), found = components([kind])

    def shape(schema: Schema) -> str:
        schema = found[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if schema.get("type") == "array":
            (item,) = {shape(one) for one in _options(schema["items"])}
            return f"[{item}{'' if item.startswith('[') else ', ...'}]"
        if "properties" not in schema:
            return "a text" if schema.get("type") == "string" else "{...}"
        required = schema.get("required", ())
        keys = [f'"{name}"' if name in required else f'"{name}"?' for name in schema["properties"]]
        return f"{{{', '.join(keys)}}}"

    shapes = dict.fromkeys(shape(one) for one in _options(schema))
    return " or ".join(one if one == "a text" else f"`{one}`" for one in shapes)


def _options(schema: Schema) -> list[Schema]:
    return [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]


def _values(schema: Schema) -> str:
    """Choices or bounds of a parameter, and its default."""
    options = _options(schema)
    default = schema.get("default", options[0].get("default"))
    shown = "" if default in (None, [], (), {}) else f" ({_literal(default)})"
    choices = [value for one in options for value in one.get("enum", ()) if value is not None]
    if choices:
        switch = [True, False] if any(one.get("type") == "boolean" for one in options) else []
        return f" {', '.join(map(_literal, [*switch, *choices]))}{shown}"
    least, above, most = (options[0].get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if least is not None and 0 < least < NEGLIGIBLE:
        least, above = None, 0
    words = [] if least is None or least <= -UNBOUNDED else [f" from {least:,}"]
    words += [] if above is None else [f" above {above:,}"]
    words += [] if most is None or most >= UNBOUNDED else [f" to {most:,}"]
    return f"{''.join(words)}{shown}"


def _literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
