"""Schema: bytes or mappings to typed objects, checked once, and JSON Schema from the same types.

    decode(body, kind)       JSON that came over HTTP, as a value of `kind`
    convert(value, kind)     a value that came from Python or YAML, as a value of `kind`
    parse(value, kind)       an input that came from Python, likewise
    check_fields(config)     a dataclass that Python built
    encode(value)            JSON
    components(kinds)        JSON Schema of `kinds`

`kind` is a msgspec.Struct, a dataclass, or any type of Python; `Annotated[int, msgspec.Meta(ge=1, le=32)]` bounds it.
msgspec does the work and is strict: no coercion, unknown keys are refused. Where it refuses a value, pipelines.misfit
words the reason.

`null` means the default wherever the type does not name it. A tuple marked `OneOrMore` takes one element without its
list.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from typing import Annotated, Any, Self, TypeVar

import msgspec
from msgspec import Meta, inspect

from pipelines.errors import ConfigurationError, InvalidInputError, Path, SextetError, UnusedParametersError
from pipelines.misfit import LISTS, OBJECTS, bare, check, items, keep_order, member_for, require_length, unknown_key

T = TypeVar("T")
Schema = dict[str, Any]

MAX_PARTS = 2**18  # lists and objects of a body that does not fit, for which the words of the misfit are looked for

OneOrMore = Annotated[tuple[T, ...], Meta(extra={"one_or_more": True})]
Text = Annotated[str, Meta(min_length=1)]
Positive = Annotated[int, Meta(ge=1)]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a client sends as a JSON object."""

    @classmethod
    def unknown(cls, names: Sequence[str], path: Path) -> InvalidInputError:
        """The error for keys that the object at `path` does not have."""
        return unknown_key(names[0], cls.__struct_fields__, path)


class Parameters(Body, frozen=True):
    """Base of every task's parameters: the types of the fields are the schema. None and absence both mean the default.

    What depends on several fields is checked in a subclass's `__post_init__`.
    """

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Raises UnusedParametersError for unknown names, InvalidInputError for a value that does not fit."""
        converted: Self = convert(given, cls, ("parameters",))
        return converted

    @property
    def choices(self) -> int:
        """How many sequences each input may have; beams and the answers that are taken from them count once."""
        return 1

    @property
    def compiles(self) -> bool:
        """Whether `preprocess` compiles a grammar, which may take seconds."""
        return False

    @classmethod
    def unknown(cls, names: Sequence[str], path: Path) -> InvalidInputError:
        return UnusedParametersError(names, path)


def decode(body: bytes, kind: Any) -> Any:
    """`body` as JSON (RFC 8259: UTF-8, no NaN, no lone surrogates; of equal keys the last wins) of type `kind`.

    Raises InvalidInputError with the path of the first value that does not fit.
    """
    try:
        return _decoder(kind).decode(body)
    except (msgspec.ValidationError, SextetError) as error:
        # Nothing else runs in Python while all of them are made: a million take most of a second.
        if body.count(b"[") + body.count(b"{") > MAX_PARTS:
            raise InvalidInputError(f"does not fit: {error}", ()) from None
        return convert(read_json(body), kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _no_json(body, error) from None


def read_json(body: bytes) -> Any:
    """`body` as plain Python; raises InvalidInputError for what is not JSON, as `decode` does."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _no_json(body, error) from None


def encode(value: Any) -> bytes:
    """JSON in UTF-8 of plain Python, structs and dataclasses; NaN becomes null."""
    return msgspec.json.encode(value)


def convert(value: Any, kind: Any, path: Path = (), *, texts: bool = False) -> Any:
    """`value` as `kind`; `path` is where it stands, for the errors. Dataclasses with unknown keys are refused, too.

    `texts` reads numbers and booleans from strings, as command lines and YAML (`5e-5`) have them. Raises
    InvalidInputError; any other SextetError of a `__post_init__` keeps its class, with the place before its message.
    """
    info, has_dataclasses = _info(kind)
    if not has_dataclasses and not texts:
        with suppress(msgspec.ValidationError, SextetError, RecursionError):
            return msgspec.convert(value, kind)
    value = _amended(value, info, path, texts)
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, SextetError, RecursionError) as error:
        check(value, info, path)
        raise InvalidInputError(f"does not fit: {error}", path) from None


def parse(value: Any, kind: Any, path: Path = ("inputs",)) -> Any:
    """An input that came from Python: converted, and refused where a text of it has no UTF-8 form.

    What a protocol has typed already is taken as it is.
    """
    converted = value if isinstance(value, _typed(kind)) else convert(value, kind, path)
    _require_unicode(converted, path)
    return converted


def check_fields(config: Any) -> None:
    """Check a dataclass that Python built, where msgspec does not look; for `__post_init__`.

    Raises ConfigurationError for the first field whose value does not fit its type.
    """
    kind: Any = type(config)
    try:
        for field in _info(kind)[0].fields:
            check(getattr(config, field.name), field.type, (field.encode_name,))
    except InvalidInputError as error:
        raise ConfigurationError(str(error)) from None


def components(kinds: Iterable[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """The JSON Schema of each kind, and the components that these refer to, by name."""
    schemas, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for component in found.values():
        component.pop("title", None)
        if "description" in component:
            component["description"] = " ".join(component["description"].replace("`", "").split())
        required = component.get("required", ())
        for name, schema in component.get("properties", {}).items():
            if name not in required:
                component["properties"][name] = _nullable(schema)
    return list(schemas), found


def _require_unicode(value: Any, path: Path) -> None:
    """Raise InvalidInputError for a text that has no UTF-8 form; only Python can send one."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"has a lone surrogate {value[error.start]!r} at character {error.start}; allowed: Unicode text", path
            ) from None
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _require_unicode(getattr(value, name), (*path, name))


@cache
def _decoder(kind: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind)


@cache
def _info(kind: Any) -> tuple[Any, bool]:
    """What a type is made of, and whether dataclasses are in it: their unknown keys msgspec lets pass."""
    classes: set[Any] = set()
    keep_order(kind, classes)
    return inspect.type_info(kind), any(map(is_dataclass, classes))


@cache
def _typed(kind: Any) -> tuple[type, ...]:
    """The classes whose instances fit as they are: structs, and texts without bounds."""
    info = _info(kind)[0]
    members = map(bare, info.types if isinstance(info, inspect.UnionType) else [info])
    return tuple(
        one.cls if isinstance(one, inspect.StructType) else str
        for one in members
        if isinstance(one, inspect.StructType) or one == inspect.StrType()
    )


def _no_json(body: bytes, error: Exception) -> InvalidInputError:
    if not body.strip():
        reason = "it is empty"
    elif isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    else:
        reason = str(error).removeprefix("JSON is malformed: ").replace(" - at `$", " at `")
        if "byte" not in reason and (lone := _SURROGATE.search(body)):
            reason = f"lone surrogate (byte {lone.start()})"
        elif "UTF-8" in reason:
            reason = f"not UTF-8 (byte {_first_bad_byte(body)})"
    return InvalidInputError(f"is not valid JSON: {reason}", ())


def _first_bad_byte(body: bytes) -> int:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(body)


def _amended(value: Any, info: Any, path: Path, texts: bool) -> Any:
    """`value` without nulls that mean the default, with lists around single elements; refuses unknown keys."""
    if isinstance(info, inspect.Metadata):
        if (info.extra or {}).get("one_or_more") and not isinstance(value, list | tuple):
            value = [value]
        return _amended(value, info.type, path, texts)
    if isinstance(info, inspect.UnionType):
        member = member_for(value, info)
        if member is None and texts and isinstance(value, str):
            read = (_amended(value, one, path, texts) for one in info.types)
            return next((one for one in read if one is not value), value)
        return value if member is None else _amended(value, member, path, texts)
    if isinstance(info, OBJECTS) and isinstance(value, Mapping):
        fields = {field.encode_name: field.type for field in info.fields}
        kept = {field.encode_name for field in info.fields if field.required}
        refuses = getattr(info, "forbid_unknown_fields", True)
        if refuses and (unknown := [str(name) for name in value if name not in fields]):
            words = getattr(info.cls, "unknown", None)
            raise words(unknown, path) if words else unknown_key(unknown[0], fields, path)
        return {
            name: _amended(one, fields[name], (*path, name), texts)
            for name, one in value.items()
            if name in fields and (one is not None or name in kept or _takes_null(fields[name]))
        }
    if isinstance(info, LISTS) and isinstance(value, list | tuple):
        require_length(value, info, path)
        if isinstance(getattr(info, "item_type", None), _LEAVES) and not texts:
            return value
        return [_amended(one, item, (*path, index), texts) for index, one, item in items(value, info)]
    if isinstance(info, inspect.DictType) and isinstance(value, Mapping):
        require_length(value, info, path)
        return {name: _amended(one, info.value_type, (*path, str(name)), texts) for name, one in value.items()}
    if texts and isinstance(value, str) and type(info) in _READ_FROM_TEXTS:
        with suppress(msgspec.ValidationError):
            return msgspec.convert(value, _READ_FROM_TEXTS[type(info)], strict=False)
    return value


def _takes_null(info: Any) -> bool:
    whole = bare(info)
    kinds = whole.types if isinstance(whole, inspect.UnionType) else (whole,)
    return any(isinstance(bare(one), inspect.NoneType | inspect.AnyType) for one in kinds)


def _nullable(schema: Schema) -> Schema:
    """The schema of an optional field: null means its default."""
    kinds = schema.get("anyOf", [schema])
    if any(one.get("type") == "null" for one in kinds) or not {"type", "enum", "$ref", "anyOf"} & set(schema):
        return schema
    return {"anyOf": [schema, {"type": "null"}]}


_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_LEAVES = (inspect.AnyType, inspect.BoolType, inspect.IntType, inspect.FloatType, inspect.StrType, inspect.LiteralType)
_READ_FROM_TEXTS: dict[type, type] = {inspect.IntType: int, inspect.FloatType: float, inspect.BoolType: bool}
