"""Random JSON Schemas whose documents end: texts, lists and objects are bounded."""

import json
from random import Random
from typing import Any

WORDS = ("name", "age", "한글", 'quote"', "a b", "x", "back\\slash", "new\nline", "emoji 😀")
PATTERNS = ("^[a-z]{2,5}$", "^\\d{3}-\\d{2}$", "^(yes|no)$", "^[가-힣]{1,3}$", "^A.?B$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4")


def document(random: Random) -> dict[str, Any]:
    """A whole schema; the same seed gives the same one. One in five refers to a definition, twice to one that nests."""
    if random.random() > 0.2:
        return schema(random, 3)
    node = {
        "type": "object",
        "properties": {"v": schema(random, 1), "next": {"$ref": "#/$defs/node"}},
        "required": ["v"],
    }
    return {"$defs": {"node": {**node, "additionalProperties": False}}, "type": "array", "maxItems": 2} | {
        "items": {"$ref": "#/$defs/node"}
    }


def schema(random: Random, depth: int) -> dict[str, Any]:
    """One schema that refers to no other."""
    kinds = [_integer, _number, _text, _choice, _constant, _plain]
    if depth:
        kinds += 2 * [_object] + [_list, _tuple, _any, _all]
    return random.choice(kinds)(random, depth)


def misfit(text: str, given: dict[str, Any]) -> str | None:
    """Why a text is no document of a schema; None where it is one."""
    import jsonschema  # type: ignore[import-untyped]

    try:
        document = json.loads(text)
        validator = jsonschema.Draft202012Validator
        validator(given, format_checker=validator.FORMAT_CHECKER).validate(document)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def _integer(random: Random, depth: int) -> dict[str, Any]:
    low = random.randint(-2000, 2000)
    bounds = {"minimum": low, random.choice(["maximum", "exclusiveMaximum"]): low + random.randint(1, 10**4)}
    return {"type": "integer", **bounds}


def _number(random: Random, depth: int) -> dict[str, Any]:
    return {"type": "number", "minimum": random.randint(-9, 0) / 2, "maximum": random.randint(1, 9) + 0.25}


def _text(random: Random, depth: int) -> dict[str, Any]:
    how = random.randrange(3)
    if how == 0:
        low = random.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + random.randint(0, 6)}
    if how == 1:
        return {"type": "string", "pattern": random.choice(PATTERNS)}
    return {"type": "string", "format": random.choice(FORMATS)}


def _choice(random: Random, depth: int) -> dict[str, Any]:
    return {"enum": random.sample([*WORDS, 1, 2.5, None, True, ["a", {}]], random.randint(1, 5))}


def _constant(random: Random, depth: int) -> dict[str, Any]:
    return {"const": random.choice([*WORDS, -7, None, {"a": [1]}])}


def _plain(random: Random, depth: int) -> dict[str, Any]:
    return {"type": random.choice(["boolean", "null", ["boolean", "null"]])}


def _object(random: Random, depth: int) -> dict[str, Any]:
    names = random.sample(WORDS, random.randint(0, 4))
    required = [name for name in names if random.random() < 0.6]
    inside = {name: schema(random, depth - 1) for name in names}
    return {"type": "object", "properties": inside, "required": required, "additionalProperties": False}


def _list(random: Random, depth: int) -> dict[str, Any]:
    low = random.randint(0, 2)
    return {
        "type": "array",
        "items": schema(random, depth - 1),
        "minItems": low,
        "maxItems": low + random.randint(0, 2),
    }


def _tuple(random: Random, depth: int) -> dict[str, Any]:
    parts = [schema(random, depth - 1) for _ in range(random.randint(1, 3))]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}


def _any(random: Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [schema(random, depth - 1) for _ in range(random.randint(1, 3))]}


def _all(random: Random, depth: int) -> dict[str, Any]:
    inside = schema(random, 0)
    return {"type": "array", "maxItems": 2, "items": {"allOf": [inside]}}
