"""CRD: an object beside the structural schema of a CustomResourceDefinition, read as the API server reads it.

The API server drops fields that the schema does not have; here they are problems. CEL rules are not evaluated.
"""

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

OF_EVERY_OBJECT = ("apiVersion", "kind", "metadata")


def problems(definition: Mapping[str, Any], value: Mapping[str, Any]) -> list[str]:
    """What of `value` does not fit the version that its apiVersion names: PATH: WHY."""
    version = value["apiVersion"].rpartition("/")[2]
    (schema,) = (one["schema"] for one in definition["spec"]["versions"] if one["name"] == version and one["served"])
    judged = {name: one for name, one in value.items() if name not in OF_EVERY_OBJECT}
    root = dict(schema["openAPIV3Schema"])
    root["properties"] = {name: one for name, one in root["properties"].items() if name not in OF_EVERY_OBJECT}
    errors = Draft202012Validator(_closed(root)).iter_errors(judged)
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {_reason(error)}" for error in errors)


def _closed(schema: Any) -> Any:
    """As JSON Schema, where objects have no further fields unless the schema says so."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {
        name: {field: _closed(one) for field, one in part.items()} if name == "properties" else _closed(part)
        for name, part in schema.items()
        if name not in ("default", "description")
    }
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        closed.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        closed["type"] = [schema["type"], "null"]
    return closed


def _reason(error: Any) -> str:
    if error.validator == "additionalProperties":
        named = [repr(name) for name in error.instance if name not in error.schema["properties"]]
        return f"{', '.join(named)} was unexpected"
    return str(error.message)
