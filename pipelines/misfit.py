"""Misfit: a value that is not of its type, in words: what, where, what is allowed, the nearest name.

The type is walked beside the value, as `msgspec.inspect` describes it, to the first part that does not fit. The words
follow from the types and their bounds; no table of words stands beside them.
"""

import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from itertools import repeat
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from pipelines.errors import InvalidInputError, Path, SextetError, UnknownKeyError

OBJECTS = (inspect.StructType, inspect.DataclassType)
LISTS = (inspect.ListType, inspect.VarTupleType, inspect.TupleType, inspect.SetType)
_SHOWN = 60  # characters of a value that an error repeats


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


def keep_order(hint: Any, seen: set[Any]) -> None:
    """Remember in which order each Literal was written: msgspec sorts them."""
    if get_origin(hint) is Literal:
        _ORDERS[frozenset(get_args(hint))] = get_args(hint)
        return
    for argument in get_args(hint):
        keep_order(argument, seen)
    if isinstance(hint, type) and hint not in seen and (issubclass(hint, msgspec.Struct) or is_dataclass(hint)):
        seen.add(hint)
        for inner in get_type_hints(hint, include_extras=True).values():
            keep_order(inner, seen)


def check(value: Any, info: Any, path: Path) -> None:
    """Raise the error of the first part of an amended `value` that does not fit."""
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        member = member_for(value, info)
        if member is None or (isinstance(bare(member), _WHOLE) and not _fits(value, bare(member))):
            raise InvalidInputError(f"is {shown(value)}; allowed: {_described(info)}", path)
        check(value, member, path)
    elif isinstance(info, OBJECTS) and isinstance(value, Mapping):
        _check_object(value, info, path)
    elif isinstance(info, LISTS) and isinstance(value, list | tuple):
        require_length(value, info, path)
        for index, one, item in items(value, info):
            check(one, item, (*path, index))
    elif isinstance(info, inspect.DictType) and isinstance(value, Mapping):
        require_length(value, info, path)
        for name, one in value.items():
            _check_key(name, info.key_type, path)
            check(one, info.value_type, (*path, str(name)))
    elif isinstance(info, inspect.StrType) and isinstance(value, str):
        require_length(value, info, path)
    elif not _fits(value, info):
        out_of_range = _is_number(value, info) and _is_bounded(info)
        allowed = _range(info, value=value) if out_of_range else _described(info)
        raise InvalidInputError(f"is {shown(value)}; allowed: {allowed}", path)


def _check_key(name: Any, info: Any, path: Path) -> None:
    try:
        check(name, info, path)
    except InvalidInputError as error:
        raise InvalidInputError(f"has a key that {error.problem}", path) from None


def _check_object(value: Mapping[str, Any], info: Any, path: Path) -> None:
    for field in info.fields:
        if field.encode_name in value:
            check(value[field.encode_name], field.type, (*path, field.encode_name))
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
    except msgspec.ValidationError:  # what is not walked: who asked has words for that
        pass


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


def member_for(value: Any, info: Any) -> Any:
    """The member of a union that a value of this kind is meant for; None where there is none."""
    members = [(one, bare(one)) for one in info.types]
    for one, kind in members:
        if isinstance(kind, inspect.LiteralType) and _fits(value, kind):
            return one
    for kinds, wanted in _KINDS:
        if isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool)):
            for one, kind in members:
                if isinstance(kind, wanted):
                    return one
    single = [one for one, kind in members if not isinstance(kind, inspect.NoneType)]
    wrapped = [one for one in single if isinstance(one, inspect.Metadata) and (one.extra or {}).get("one_or_more")]
    return single[0] if len(single) == 1 else wrapped[0] if wrapped else None


def bare(info: Any) -> Any:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def items(value: Sequence[Any], info: Any) -> Iterator[tuple[int, Any, Any]]:
    """Each element with its index and its type."""
    if isinstance(info, inspect.TupleType):
        kinds = [*info.item_types, *[inspect.AnyType()] * max(0, len(value) - len(info.item_types))]
        return zip(range(len(value)), value, kinds, strict=False)
    return zip(range(len(value)), value, repeat(info.item_type), strict=False)


def require_length(value: Any, info: Any, path: Path) -> None:
    """Raise InvalidInputError for a text, a list or an object with fewer or more elements than its type allows."""
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
    info = bare(info)
    if isinstance(info, inspect.UnionType):
        return _described_union(info)
    if isinstance(info, OBJECTS):
        noun = "a mapping" if isinstance(info, inspect.DataclassType) else "an object"  # YAML's word and JSON's
        needs = [field.encode_name for field in info.fields if field.required]
        others = [field.encode_name for field in info.fields if not field.required]
        if not needs or noun == "a mapping":
            return noun
        perhaps = f" and perhaps {', '.join(others)}" if 0 < len(others) <= 3 else ""
        return f"{noun} with {' and '.join(needs)}{perhaps}"
    if isinstance(info, LISTS):
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
    members = [bare(one) for one in info.types if not isinstance(bare(one), inspect.NoneType)]
    kinds = list(dict.fromkeys(_described(one) for one in members if not isinstance(one, LISTS)))
    single = " or ".join(kinds)
    for one in members:
        if isinstance(one, LISTS):
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


_short = reprlib.Repr()
_short.maxlevel, _short.maxother, _short.maxlong = 3, _SHOWN, _SHOWN
_WORDS = {None: "null", True: "true", False: "false"}
_ORDERS: dict[frozenset[Any], tuple[Any, ...]] = {}
_VAST = 2**31 - 1
_WHOLE = (inspect.LiteralType, inspect.BoolType, inspect.NoneType)  # without parts to look at
_NUMBERS = (inspect.IntType, inspect.FloatType)
_KINDS: tuple[tuple[Any, Any], ...] = (  # values, and the types that they are meant for
    (bool, inspect.BoolType),
    (int, inspect.IntType),
    ((int, float), inspect.FloatType),
    (str, (inspect.StrType, inspect.LiteralType)),
    (Mapping, (*OBJECTS, inspect.DictType)),
    ((list, tuple), LISTS),
    (type(None), inspect.NoneType),
    (object, inspect.AnyType),
)
