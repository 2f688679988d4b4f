"""ResponseFormat: what an answer must be, as OpenAI's and text-generation-inference's clients say it."""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from pipelines.generation.decoding.guide import Constraint
from pipelines.misfit import require
from pipelines.schema import Body
from pipelines.tasks.constraint import ANY_OBJECT, json_schema, regex


class NamedSchema(Body, frozen=True):
    """A JSON Schema with its name. Answers are held to it whether `strict` or not."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: Annotated[str, Meta(max_length=8192)] | None = None
    schema_: dict[str, Any] | None = field(default=None, name="schema")
    strict: bool | None = None


class ResponseFormat(Body, frozen=True):
    """OpenAI's `text`, `json_object` and `json_schema`, and text-generation-inference's `json` and `regex`, whose
    `value` is a schema or an expression.
    """

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: NamedSchema | None = None
    value: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        has_schema, takes = self.json_schema is not None, self.type in ("json", "regex")
        require(has_schema or self.type != "json_schema", ("json_schema",), None, "an object with name and schema")
        require(self.type == "json_schema" or not has_schema, ("json_schema",), {}, "with type json_schema only")
        require(self.value is not None or not takes, ("value",), None, "a schema or an expression")
        require(self.value is None or takes, ("value",), self.value, "with type json or regex only")
        _ = self.constraint

    @property
    def constraint(self) -> Constraint | None:
        """None where any text will do. Raises InvalidInputError with a place below this object."""
        if self.type == "json_object":
            return ANY_OBJECT
        if self.type == "json":
            return json_schema(self.value, ("value",))
        if self.type == "regex":
            return regex(self.value, ("value",))
        if self.json_schema is None:
            return None
        return (
            ANY_OBJECT
            if self.json_schema.schema_ is None
            else json_schema(self.json_schema.schema_, ("json_schema", "schema"))
        )
