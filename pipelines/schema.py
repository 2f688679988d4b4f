"""Schema: bytes or mappings to typed objects, checked once, and JSON Schema from the same types.

    decode(body, kind)       JSON that came over HTTP, as a value of `kind`
    convert(value, kind)     a value that came from Python or YAML, as a value of `kind`
    parse(value, kind)       an input that came from Python, likewise
    encode(value)            JSON
    components(kinds)        JSON Schema of `kinds`

`kind` is a msgspec.Struct, a dataclass, or any type of Python; `Annotated[int, msgspec.Meta(ge=1, le=32)]` bounds it.
msgspec does the work and is strict: no coercion, unknown keys are refused. Where it refuses a value, the type is walked
beside the value to word the reason: what, where, what is allowed, the nearest name. No table of words stands beside the
types.

`null` means the default wherever the type does not name it. A tuple marked `OneOrMore` takes one element without its
list.
"""

import re
import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from itertools import repeat
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, inspect

from pipelines.errors import InvalidInputError, Path, SextetError, UnknownKeyError

T = TypeVar("T")
Schema = dict[str, Any]

OneOrMore = Annotated[tuple[T, ...], Meta(extra={"one_or_more": True})]
Text = Annotated[str, Meta(min_length=1)]

_OBJECTS = (inspect.StructType, inspect.DataclassType)
_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.TupleType, inspect.SetType)
_SHOWN = 60  # characters of a value that an error repeats


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a client sends as a JSON object."""

    @classmethod
    def unknown(cls, names: Sequence[str], path: Path) -> InvalidInputError:
        """The error for keys that the object at `path` does not have."""
        return unknown_key(names[0], cls.__struct_fields__, path)


def decode(body: bytes, kind: Any) -> Any:
    """`body` as JSON (RFC 8259: UTF-8, no NaN, no lone surrogates; of equal keys the last wins) of type `kind`.

    Raises InvalidInputError with the path of the first value that does not fit.
    """
    try:
        return _decoder(kind).decode(body)
    except (msgspec.ValidationError, SextetError):
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
        _check(value, info, path)
        raise InvalidInputError(f"does not fit: {error}", path) from None


def parse(value: Any, kind: Any, path: Path = ("inputs",)) -> Any:
    """An input that came from Python: converted, and refused where a text of it has no UTF-8 form.

    What a protocol has typed already is taken as it is.
    """
    converted = value if isinstance(value, _typed(kind)) else convert(value, kind, path)
    _require_unicode(converted, path)
    return converted


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


def require(condition: bool, path: Path, value: object, allowed: str) -> None:
    """Raise InvalidInputError naming the place, the value and what is allowed, unless `condition`."""
    if not condition:
        raise InvalidInputError(f"is {shown(value)}; allowed: {allowed}", path)


def shown(value: object) -> str:
    """A value as an error repeats it: its beginning, where it is long or deep."""
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    if isinstance(value, int) and value.bit_length() > 8 * _SHOWN:  # Python does not write out the longest ones
        return "a huge integer"
    text = repr(value[:_SHOWN]) if isinstance(value, str | bytes) else _short.repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def unknown_key(name: object, allowed: Iterable[str], path: Path) -> UnknownKeyError:
    """The error for a key that the object at `path` does not have, with the nearest that it has."""
    names = sorted(allowed)
    problem = f"has no key {shown(name)}{nearest(name, names)}; allowed: {', '.join(names) or 'none'}"
    return UnknownKeyError(problem, (*path, str(name)))


def nearest(name: object, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing where no name is near."""
    close = get_close_matches(str(name)[:_SHOWN], list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
    _keep_order(kind, classes)
    return inspect.type_info(kind), any(map(is_dataclass, classes))


@cache
def _typed(kind: Any) -> tuple[type, ...]:
    """The classes whose instances fit as they are: structs, and texts without bounds."""
    info = _info(kind)[0]
    members = map(_bare, info.types if isinstance(info, inspect.UnionType) else [info])
    return tuple(
        one.cls if isinstance(one, inspect.StructType) else str
        for one in members
        if isinstance(one, inspect.StructType) or one == inspect.StrType()
    )


def _keep_order(hint: Any, seen: set[Any]) -> None:
    """Remember in which order each Literal was written: msgspec sorts them."""
    if get_origin(hint) is Literal:
        _ORDERS[frozenset(get_args(hint))] = get_args(hint)
        return
    for argument in get_args(hint):
        _keep_order(argument, seen)
    if isinstance(hint, type) and hint not in seen and (issubclass(hint, msgspec.Struct) or is_dataclass(hint)):
        seen.add(hint)
        for inner in get_type_hints(hint, include_extras=True).values():
            _keep_order(inner, seen)


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
        member = _member(value, info)
        return value if member is None else _amended(value, member, path, texts)
    if isinstance(info, _OBJECTS) and isinstance(value, Mapping):
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
    if isinstance(info, _LISTS) and isinstance(value, list | tuple):
        return [_amended(one, item, (*path, index), texts) for index, one, item in _items(value, info)]
    if isinstance(info, inspect.DictType) and isinstance(value, Mapping):
        return {name: _amended(one, info.value_type, (*path, str(name)), texts) for name, one in value.items()}
    if texts and isinstance(value, str) and type(info) in _READ_FROM_TEXTS:
        with suppress(msgspec.ValidationError):
            return msgspec.convert(value, _READ_FROM_TEXTS[type(info)], strict=False)
    return value


def _check(value: Any, info: Any, path: Path) -> None:
    """Raise the error of the first part of an amended `value` that does not fit."""
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        member = _member(value, info)
        if member is None or (isinstance(_bare(member), _WHOLE) and not _fits(value, _bare(member))):
            raise InvalidInputError(f"is {shown(value)}; allowed: {_described(info)}", path)
        _check(value, member, path)
    elif isinstance(info, _OBJECTS) and isinstance(value, Mapping):
        _check_object(value, info, path)
    elif isinstance(info, _LISTS) and isinstance(value, list | tuple):
        _require_length(value, info, path)
        for index, one, item in _items(value, info):
            _check(one, item, (*path, index))
    elif isinstance(info, inspect.DictType) and isinstance(value, Mapping):
        _require_length(value, info, path)
        for name, one in value.items():
            _check(one, info.value_type, (*path, str(name)))
    elif isinstance(info, inspect.StrType) and isinstance(value, str):
        _require_length(value, info, path)
    elif not _fits(value, info):
        out_of_range = _is_number(value, info) and _is_bounded(info)
        allowed = _range(info, value=value) if out_of_range else _described(info)
        raise InvalidInputError(f"is {shown(value)}; allowed: {allowed}", path)


def _check_object(value: Mapping[str, Any], info: Any, path: Path) -> None:
    for field in info.fields:
        if field.encode_name in value:
            _check(value[field.encode_name], field.type, (*path, field.encode_name))
        elif field.required and path:
            raise InvalidInputError(f"lacks {field.encode_name}; allowed: {_described(info)}", path)
        elif field.required:
            raise InvalidInputError(f"is missing; allowed: {_described(field.type)}", (field.encode_name,))
    try:
        msgspec.convert(value, info.cls)
    except InvalidInputError as error:
        raise error.at((*path, *(error.path or ()))) from None
    except SextetError as error:
        raise type(error)(": ".join([*map(str, path), str(error)])) from None


def _fits(value: Any, info: Any) -> bool:
    """Whether a value that has no parts is of the type and within its bounds."""
    if isinstance(info, inspect.LiteralType):
        return any(type(value) is type(one) and value == one for one in info.values)  # in Python 1 equals True
    if isinstance(info, _NUMBERS):
        if not _is_number(value, info) or (isinstance(info, inspect.FloatType) and abs(value) > sys.float_info.max):
            return False
        return (
            (info.ge is None or value >= info.ge)
            and (info.gt is None or value > info.gt)
            and (info.le is None or value <= info.le)
            and (info.lt is None or value < info.lt)
        )
    if isinstance(info, inspect.BoolType | inspect.NoneType):
        return isinstance(value, bool if isinstance(info, inspect.BoolType) else type(None))
    return isinstance(info, inspect.AnyType)


def _is_number(value: Any, info: Any) -> bool:
    """Whether `value` is of the kind that a type of numbers takes: integers are numbers, booleans are not."""
    kinds = int if isinstance(info, inspect.IntType) else (int, float) if isinstance(info, inspect.FloatType) else ()
    return isinstance(value, kinds) and not isinstance(value, bool)


def _member(value: Any, info: Any) -> Any:
    """The member of a union that a value of this kind is meant for; None where there is none."""
    members = [(one, _bare(one)) for one in info.types]
    for one, bare in members:
        if isinstance(bare, inspect.LiteralType) and _fits(value, bare):
            return one
    for kinds, wanted in _KINDS:
        if isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool)):
            for one, bare in members:
                if isinstance(bare, wanted):
                    return one
    single = [one for one, bare in members if not isinstance(bare, inspect.NoneType)]
    wrapped = [one for one in single if isinstance(one, inspect.Metadata) and (one.extra or {}).get("one_or_more")]
    return single[0] if len(single) == 1 else wrapped[0] if wrapped else None


def _bare(info: Any) -> Any:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def _items(value: Sequence[Any], info: Any) -> Iterator[tuple[int, Any, Any]]:
    """Each element with its index and its type."""
    if isinstance(info, inspect.TupleType):
        kinds = [*info.item_types, *[inspect.AnyType()] * max(0, len(value) - len(info.item_types))]
        return zip(range(len(value)), value, kinds, strict=False)
    return zip(range(len(value)), value, repeat(info.item_type), strict=False)


def _takes_null(info: Any) -> bool:
    bare = _bare(info)
    kinds = bare.types if isinstance(bare, inspect.UnionType) else (bare,)
    return any(isinstance(_bare(one), inspect.NoneType | inspect.AnyType) for one in kinds)


def _require_length(value: Any, info: Any, path: Path) -> None:
    least, most = _lengths(info)
    noun = "characters" if isinstance(info, inspect.StrType) else "elements"
    if not value and least > 0:
        allowed = "a text" if noun == "characters" else "at least one element"
        raise InvalidInputError(f"is empty; allowed: {allowed}", path)
    if len(value) < least:
        raise InvalidInputError(f"has {len(value)} {noun}; allowed: from {least}", path)
    if most is not None and len(value) > most:
        if most == 0:
            raise InvalidInputError(f"is {shown(value)}; allowed: {_described(info)}", path)
        raise InvalidInputError(f"has {len(value)} {noun}; allowed: at most {most}", path)


def _lengths(info: Any) -> tuple[int, int | None]:
    if isinstance(info, inspect.TupleType):
        return len(info.item_types), len(info.item_types)
    return info.min_length or 0, info.max_length


def _described(info: Any) -> str:
    """What a type allows, in words."""
    info = _bare(info)
    if isinstance(info, inspect.UnionType):
        return _described_union(info)
    if isinstance(info, _OBJECTS):
        noun = "a mapping" if isinstance(info, inspect.DataclassType) else "an object"  # YAML's word and JSON's
        needs = [field.encode_name for field in info.fields if field.required]
        others = [field.encode_name for field in info.fields if not field.required]
        if not needs or noun == "a mapping":
            return noun
        perhaps = f" and perhaps {', '.join(others)}" if 0 < len(others) <= 3 else ""
        return f"{noun} with {' and '.join(needs)}{perhaps}"
    if isinstance(info, _LISTS):
        least, most = _lengths(info)
        if most == 0:
            return "an empty list, as nothing else is supported"
        bounds = f" of at most {most}" if most is not None else " of at least one" if least else ""
        item = getattr(info, "item_type", None)
        of_what = "" if item is None or isinstance(item, inspect.AnyType) else f", each {_described(item)}"
        return f"a list{bounds}{of_what}"
    if isinstance(info, inspect.DictType):
        return "an empty object, as nothing else is supported" if info.max_length == 0 else "an object"
    if isinstance(info, inspect.StrType):
        noun = "a text" if info.min_length else "a string"
        return noun if info.max_length is None else f"{noun} of at most {info.max_length} characters"
    if isinstance(info, _NUMBERS):
        noun = "an integer" if isinstance(info, inspect.IntType) else "a number"
        return _range(info, noun) if _is_bounded(info) else noun
    if isinstance(info, inspect.LiteralType):
        return ", ".join(map(str, _ORDERS.get(frozenset(info.values), info.values)))
    return {inspect.BoolType: "true or false", inspect.NoneType: "null"}.get(type(info), "anything")


def _described_union(info: Any) -> str:
    members = [_bare(one) for one in info.types if not isinstance(_bare(one), inspect.NoneType)]
    kinds = list(dict.fromkeys(_described(one) for one in members if not isinstance(one, _LISTS)))
    single = " or ".join(kinds)
    for one in members:
        if isinstance(one, _LISTS):
            is_of_those = single and _described(getattr(one, "item_type", None)) == single
            kinds.append("a list of those" if is_of_those else _described(one))
    return " or ".join(kinds)


def _is_bounded(info: Any) -> bool:
    return any(getattr(info, name) is not None for name in ("ge", "gt", "le", "lt"))


def _range(info: Any, noun: str = "", value: float = 0) -> str:
    """The bounds of a number: `1 to 32`, `an integer from 1`; one that no sensible value reaches only where it was."""
    kind = "an integer" if isinstance(info, inspect.IntType) else "a number"
    hides = info.le is not None and value <= info.le and info.le >= _VAST and kind == "an integer"
    if info.ge is not None and info.le is not None and not hides:
        return f"{noun and noun + ' from '}{_number(info.ge)} to {_number(info.le)}"
    bounds = [
        f"{word} {_number(getattr(info, name))}"
        for name, word in (("ge", "from"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if getattr(info, name) is not None and not (hides and name == "le")
    ]
    return " and ".join(bounds) if len(bounds) > 1 and not noun else f"{kind} {' and '.join(bounds)}"


def _number(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e") if isinstance(value, float) else str(value)


def _nullable(schema: Schema) -> Schema:
    """The schema of an optional field: null means its default."""
    kinds = schema.get("anyOf", [schema])
    if any(one.get("type") == "null" for one in kinds) or not {"type", "enum", "$ref", "anyOf"} & set(schema):
        return schema
    return {"anyOf": [schema, {"type": "null"}]}


_short = reprlib.Repr()
_short.maxlevel, _short.maxother, _short.maxlong = 3, _SHOWN, _SHOWN
_WORDS = {None: "null", True: "true", False: "false"}
_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_ORDERS: dict[frozenset[Any], tuple[Any, ...]] = {}
_VAST = 2**31 - 1
_WHOLE = (inspect.LiteralType, inspect.BoolType, inspect.NoneType)  # without parts to look at
_NUMBERS = (inspect.IntType, inspect.FloatType)
_READ_FROM_TEXTS: dict[type, type] = {inspect.IntType: int, inspect.FloatType: float, inspect.BoolType: bool}
_KINDS: tuple[tuple[Any, Any], ...] = (  # values, and the types that they are meant for
    (bool, inspect.BoolType),
    (int, inspect.IntType),
    ((int, float), inspect.FloatType),
    (str, (inspect.StrType, inspect.LiteralType)),
    (Mapping, (*_OBJECTS, inspect.DictType)),
    ((list, tuple), _LISTS),
    (type(None), inspect.NoneType),
    (object, inspect.AnyType),
)
