"""Inputs as they come from JSON or Python, checked: the errors name the field and what it may be."""

from collections.abc import Collection
from typing import Any

from pipelines.errors import InvalidInputError

_KINDS: dict[type[Any], str] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def parse_text(raw: Any, field: str = "inputs") -> str:
    """`raw` where it is a string that has a UTF-8 form; raises InvalidInputError otherwise."""
    if not isinstance(raw, str):
        raise InvalidInputError(f"{field} is {_kind(raw)}; allowed: a string")
    if not raw.isascii():
        try:
            raw.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"{field} has a lone surrogate {raw[error.start]!r} at character {error.start}; allowed: Unicode text"
            ) from None
    return raw


def parse_fields(raw: Any, required: Collection[str], optional: Collection[str] = (), field: str = "inputs") -> Any:
    """`raw` where it is an object of texts with all `required` names and no others than the `optional` ones.

    A None under an optional name counts as absent. Raises InvalidInputError otherwise.
    """
    allowed = f"an object with {' and '.join(required)}" + "".join(f" and perhaps {name}" for name in optional)
    if not isinstance(raw, dict):
        raise InvalidInputError(f"{field} is {_kind(raw)}; allowed: {allowed}")
    if missing := [name for name in required if name not in raw]:
        raise InvalidInputError(f"{field} lacks {', '.join(missing)}; allowed: {allowed}")
    if unknown := [name for name in raw if name not in required and name not in optional]:
        raise InvalidInputError(f"{field} has {', '.join(map(str, unknown))}; allowed: {allowed}")
    given = {name: value for name, value in raw.items() if value is not None or name in required}
    return {name: parse_text(value, f"{field}.{name}") for name, value in given.items()}


def _kind(raw: Any) -> str:
    """What JSON calls a value of this type."""
    return _KINDS.get(type(raw), type(raw).__name__)
