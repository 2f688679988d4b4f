"""The process that compiles what may never end, with llguidance itself."""

import json
from collections.abc import Iterator

import pytest
from llguidance import LLMatcher

from deployments.guidance.checker import Checker

ENDLESS = {"allOf": [{"type": "string", "pattern": f"^(.*a.{{{index}}}){{3}}"} for index in range(60)]}


@pytest.fixture
def checker() -> Iterator[Checker]:
    made = Checker(time_s=0.5)
    yield made
    made.close()


def problem(checker: Checker, schema: object) -> tuple[str | None, list[str | int]]:
    return checker.problem(LLMatcher.grammar_from_json_schema(json.dumps(schema)), schema)


def test_the_place_is_that_of_the_innermost_part_that_is_wrong(checker: Checker) -> None:
    inner = {"anyOf": [{"type": "string"}, {"type": "string", "format": "zork"}]}
    in_definition = {"$ref": "#/$defs/a", "$defs": {"a": {"prefixItems": [{}, {"type": "what"}]}}}

    assert problem(checker, {"type": "object"}) == (None, [])
    assert problem(checker, {"properties": {"x": {"items": inner}}}) == (
        "Unknown format: zork",
        ["properties", "x", "items", "anyOf", 1],
    )
    assert problem(checker, in_definition) == ("Invalid type: what", ["$defs", "a", "prefixItems", 1])
    assert problem(checker, {"properties": {"a": {"$ref": "#/$defs/b"}}})[1] == ["properties", "a"]


def test_a_schema_that_takes_too_long_or_too_much_is_refused_and_the_next_one_is_not(checker: Checker) -> None:
    reason, place = problem(checker, ENDLESS)

    assert reason is not None
    assert reason.startswith("it takes ")
    assert place == []
    assert problem(checker, {"type": "integer"}) == (None, [])


def test_a_process_that_was_killed_is_replaced(checker: Checker) -> None:
    problem(checker, {})
    assert checker._process is not None
    checker._process.kill()
    checker._process.wait()

    assert problem(checker, {"type": "what"}) == ("Invalid type: what", [])
