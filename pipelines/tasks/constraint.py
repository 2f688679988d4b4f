"""What clients say to hold an answer to a grammar: JSON Schemas and regular expressions, bounded before they cost."""

from collections.abc import Mapping
from typing import Any, Literal

from pipelines.errors import InvalidInputError, Path
from pipelines.generation.decoding.guide import Constraint
from pipelines.misfit import shown
from pipelines.schema import Body, encode, read_json

MAX_SCHEMA_BYTES = 32_768
MAX_SCHEMA_DEPTH = 32
MAX_REGEX_CHARACTERS = 1024

ANY_OBJECT = Constraint("json_schema", '{"type":"object"}')


class GrammarParameter(Body, frozen=True):
    """As text-generation-inference: `json` has a schema, as an object or as its JSON; `json_schema` an object with a
    `name` and the `schema`; `regex` an expression that the whole answer matches.
    """

    type: Literal["json", "json_schema", "regex"]
    value: str | dict[str, Any]

    def __post_init__(self) -> None:
        _ = self.constraint

    @property
    def constraint(self) -> Constraint:
        """Raises InvalidInputError with a place below this object."""
        if self.type == "regex":
            return regex(self.value, ("value",))
        if self.type == "json":
            return json_schema(self.value, ("value",))
        if not isinstance(self.value, dict) or "schema" not in self.value:
            raise InvalidInputError(f"is {shown(self.value)}; allowed: an object with name and schema", ("value",))
        return json_schema(self.value["schema"], ("value", "schema"))


def json_schema(schema: Any, path: Path) -> Constraint:
    """The constraint of a schema, an object or its JSON; raises InvalidInputError for one beyond the bounds."""
    if isinstance(schema, str):
        if len(schema) > MAX_SCHEMA_BYTES:
            raise InvalidInputError(f"has {len(schema)} characters; allowed: at most {MAX_SCHEMA_BYTES}", path)
        try:
            schema = read_json(schema.encode())
        except (InvalidInputError, UnicodeEncodeError):
            raise InvalidInputError("is not valid JSON; allowed: a JSON Schema", path) from None
    if not isinstance(schema, Mapping):
        raise InvalidInputError(f"is {shown(schema)}; allowed: a JSON Schema, as an object", path)
    depth = _depth(schema)
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidInputError(f"is nested more than {MAX_SCHEMA_DEPTH} levels deep; allowed: at most that", path)
    text = encode(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidInputError(f"has {len(text)} bytes; allowed: at most {MAX_SCHEMA_BYTES}", path)
    return Constraint("json_schema", text.decode(), path)


def regex(expression: Any, path: Path) -> Constraint:
    """The constraint of an expression; raises InvalidInputError for one beyond the bounds."""
    if not isinstance(expression, str) or not expression:
        raise InvalidInputError(f"is {shown(expression)}; allowed: a regular expression", path)
    if len(expression) > MAX_REGEX_CHARACTERS:
        raise InvalidInputError(f"has {len(expression)} characters; allowed: at most {MAX_REGEX_CHARACTERS}", path)
    return Constraint("regex", expression, path)


def _depth(value: Any) -> int:
    """How deep objects and lists are nested, counted up to one above the bound."""
    level, depth = [value], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        depth += 1
        inner: list[Any] = []
        for one in level:
            inner += one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ()
        level = [one for one in inner if isinstance(one, Mapping | list)]
    return depth
