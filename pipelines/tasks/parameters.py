"""Parameters: what a caller may set on a task, checked once, at the edge.

A task declares a frozen dataclass; its field types are the schema. `None` and absence both mean the default.
"""

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from pipelines.errors import InvalidInputError, UnusedParametersError


@dataclass(frozen=True)
class Parameters:
    """Base of every task's parameters. Ranges are checked in a subclass's `__post_init__` with `require`."""

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Raises UnusedParametersError for unknown names, InvalidInputError for a value of the wrong type."""
        known = {field.name for field in fields(cls)}
        unused = [name for name in given if name not in known]
        if unused:
            raise UnusedParametersError(unused)
        parameters: Any = cls  # mypy takes type[Self] of a frozen dataclass for unhashable
        hints = _hints(parameters)
        checked = {name: _checked(name, value, hints[name]) for name, value in given.items() if value is not None}
        return cls(**checked)


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise InvalidInputError naming the parameter, the value it got and what is allowed, unless `condition`."""
    if not condition:
        raise InvalidInputError(f"parameters.{name} is {shown(value)}; allowed: {allowed}")


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type, or InvalidInputError. JSON integers are accepted where a float is meant."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        hint = next(argument for argument in get_args(hint) if argument is not types.NoneType)
        origin = get_origin(hint)
    if origin is Literal:
        allowed = get_args(hint)
        # In Python 1 equals True, and what asks for `is True` later would not see it.
        fits = any(type(value) is type(one) and value == one for one in allowed)
        require(fits, name, value, ", ".join(map(str, allowed)))
        return value
    if origin is tuple:
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return tuple(_checked(f"{name}[{index}]", item, get_args(hint)[0]) for index, item in enumerate(items))
    if origin is not None:
        require(isinstance(value, origin), name, value, "an object")
        return value
    if hint is bool:
        require(isinstance(value, bool), name, value, "true or false")
    elif hint is int:
        require(isinstance(value, int) and not isinstance(value, bool), name, value, "an integer")
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        require(number, name, value, "a finite number")
        return float(value)
    elif hint is str:
        require(isinstance(value, str), name, value, "a string")
    return value


def shown(value: object) -> str:
    """A value as an error repeats it: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
