"""A program that says whether grammars compile: a JSON line in, a JSON line out. It imports nothing of Sextet.

    {"grammar": "...", "schema": {...} | null}  ->  {"problem": null, "path": []}

Some schemas of a few kilobytes take llguidance hours and gigabytes, which nothing inside it stops. This process has
little memory, and checker.py kills it where an answer takes too long.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits

LONGEST_S = 10  # then it ends by itself: a server that was killed cannot kill it
MEMORY_BYTES = 96 * 2**20  # of address space, beyond what the program itself has
_OBJECTS = ("$defs", "definitions", "properties", "patternProperties")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


def main() -> None:
    """Answer until the input ends."""
    with open("/proc/self/statm", encoding="ascii") as memory:
        own = int(memory.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY_BYTES, own + MEMORY_BYTES))
    for line in sys.stdin:
        given = json.loads(line)
        signal.alarm(LONGEST_S)
        problem, path = _problem(given["grammar"]), list[str | int]()
        if problem and given["schema"] is not None:
            path = _place(given["schema"], problem)
        signal.alarm(0)
        print(json.dumps({"problem": problem or None, "path": path}), flush=True)


def _problem(grammar: str) -> str:
    """Why a grammar does not compile; "" where it does."""
    return LLMatcher.validate_grammar(grammar, limits=LLParserLimits(verbose_errors=False))


def _place(schema: Any, problem: str) -> list[str | int]:
    """The path of the innermost part of a schema that has the same problem by itself."""
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    path: list[str | int] = []
    while True:
        for step, part in _parts(schema):
            whole = {**definitions, **part}
            if _problem(LLMatcher.grammar_from_json_schema(json.dumps(whole))) == problem:
                path, schema = path + step, part
                break
        else:
            return path


def _parts(schema: Any) -> Iterator[tuple[list[str | int], dict[str, Any]]]:
    """The schemas directly inside a schema, with their paths in it."""
    for name in _OBJECTS:
        inside = schema.get(name)
        if isinstance(inside, dict):
            for key, one in inside.items():
                if isinstance(one, dict):
                    yield [name, key], one
    for name in _LISTS:
        inside = schema.get(name)
        if isinstance(inside, list):
            for index, one in enumerate(inside):
                if isinstance(one, dict):
                    yield [name, index], one
    for name in _SCHEMAS:
        if isinstance(schema.get(name), dict):
            yield [name], schema[name]


if __name__ == "__main__":
    main()
