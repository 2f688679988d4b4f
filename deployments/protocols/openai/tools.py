"""Tools as OpenAI's clients describe them, choose them, and send their calls and results back."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pipelines.errors import InvalidInputError, Path
from pipelines.misfit import nearest, require, shown
from pipelines.schema import Body, encode, read_json
from pipelines.tasks.constraint import json_schema

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARACTERS = 16_384
MAX_ARGUMENTS_CHARACTERS = 200_000
_ANY: Mapping[str, Any] = {"type": "object"}

ToolName = Annotated[str, Meta(min_length=1, max_length=64)]
_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
MAX_CALL_ID_CHARACTERS = 256
CallId = Annotated[str, Meta(min_length=1, max_length=MAX_CALL_ID_CHARACTERS)]


class Function(Body, frozen=True):
    """A function that the model may call. `parameters` is the JSON Schema of its arguments. Arguments are held to it
    where `strict` is true, or where the function must be called.
    """

    name: ToolName
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_CHARACTERS)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        _require_name(self.name)
        if self.parameters is not None:
            json_schema(self.parameters, ("parameters",))


class Tool(Body, frozen=True):
    """A tool; there are functions only."""

    type: Literal["function"]
    function: Function


class FunctionName(Body, frozen=True):
    """Names one of the functions."""

    name: ToolName


class NamedTool(Body, frozen=True):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class Arguments(dict[str, Any]):
    """The arguments of a call as chat templates take them: a mapping for most, JSON where Functionary's add them up."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, text: str) -> str:
        return f"{self}{text}"

    def __radd__(self, text: str) -> str:
        return f"{text}{self}"


class CalledFunction(Body, frozen=True):
    """What an earlier answer called; `arguments` is the JSON of an object."""

    name: ToolName
    arguments: Annotated[str, Meta(max_length=MAX_ARGUMENTS_CHARACTERS)]

    def __post_init__(self) -> None:
        _require_name(self.name)
        _ = self.parsed

    @property
    def parsed(self) -> dict[str, Any]:
        """The arguments as chat templates take them."""
        try:
            arguments = read_json(self.arguments.encode()) if self.arguments.strip() else {}
        except InvalidInputError:
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidInputError(f"is {shown(self.arguments)}; allowed: the JSON of an object", ("arguments",))
        return arguments


class ToolCall(msgspec.Struct, frozen=True):
    """A call in a message of the assistant. Clients send back what streams add to it, as `index`."""

    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it."""
        called = {"name": self.function.name, "arguments": Arguments(self.function.parsed)}
        return {"id": self.id, "type": self.type, "function": called}


class ToolUse(msgspec.Struct, frozen=True):
    """What a request says of tools: `tools`, whether one must be called, and whether several may be.

    `schemas` are the names of those that may be called, with the JSON Schemas that their arguments are held to. An
    answer that `is_guided` is held to the call format.
    """

    tools: tuple[Tool, ...]
    schemas: tuple[tuple[str, Mapping[str, Any]], ...]
    must: bool
    several: bool

    @classmethod
    def of(cls, tools: Sequence[Tool], choice: str | NamedTool | None, parallel: bool | None) -> "ToolUse | None":
        """None where no tool may be called; raises InvalidInputError."""
        names = [tool.function.name for tool in tools]
        for index, name in enumerate(names):
            require(name not in names[:index], ("tools", index, "function", "name"), name, "a name of its own")
        if isinstance(choice, NamedTool):
            name = choice.function.name
            if name not in names:
                close = nearest(name, names)
                problem = f"is {name!r}{close}; allowed: {', '.join(names) or 'none, as there are no tools'}"
                raise InvalidInputError(problem, ("tool_choice", "function", "name"))
        require(bool(tools) or choice != "required", ("tool_choice",), choice, "with tools only")
        if not tools or choice == "none":
            return None
        must = choice == "required" or isinstance(choice, NamedTool)
        called = [tool.function for tool in tools if not isinstance(choice, NamedTool) or tool.function.name == name]
        held = ((one.name, one.parameters if must or one.strict else None) for one in called)
        schemas = tuple((name, _ANY if schema is None else schema) for name, schema in held)
        return cls(tuple(tools), schemas, must, parallel is not False)

    @property
    def is_guided(self) -> bool:
        return self.must or not self.several or any(tool.function.strict for tool in self.tools)

    def place(self, name: str) -> Path:
        """Where the parameters of a function stand in the body."""
        index = next(index for index, tool in enumerate(self.tools) if tool.function.name == name)
        return "tools", index, "function", "parameters"

    def for_template(self) -> list[dict[str, Any]]:
        """As chat templates take them."""
        described = []
        for tool in self.tools:
            function: dict[str, Any] = {"name": tool.function.name}
            if tool.function.description is not None:
                function["description"] = tool.function.description
            function["parameters"] = tool.function.parameters or {"type": "object", "properties": {}}
            described.append({"type": "function", "function": function})
        return described


def _require_name(name: str) -> None:
    require(_NAME.fullmatch(name) is not None, ("name",), name, "letters, digits, underscores, points and dashes")


def texts_of_tools(tools: Sequence[Tool]) -> Iterator[str]:
    """The texts that a tokenizer will read."""
    for tool in tools:
        yield encode(tool).decode()
