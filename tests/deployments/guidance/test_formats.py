"""Formats: what a pattern takes, Python's parsers take, and the other way round."""

import json
import re
from datetime import date, datetime
from itertools import product
from typing import Any

import pytest

from deployments.guidance.compiler import JSON_OPTIONS
from deployments.guidance.formats import PATTERNS, exact


def is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def takes(schema: Any, text: str) -> bool:
    """Whether llguidance lets a model write the text."""
    from llguidance import LLMatcher, LLTokenizer

    vocabulary = LLTokenizer("byte")
    source = LLMatcher.grammar_from_json_schema(exact(json.dumps(schema)), overrides=JSON_OPTIONS)  # type: ignore[arg-type]
    matcher = LLMatcher(vocabulary, source, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = vocabulary.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def test_the_pattern_of_dates_is_the_calendar() -> None:
    years = (0, 1, 4, 9, 10, 96, 100, 400, 1000, 1900, 1999, 2000, 2023, 2024, 2100, 9999)
    for year, month, day in product(years, range(14), (0, 1, 9, 10, 28, 29, 30, 31, 32)):
        text = f"{year:04}-{month:02}-{day:02}"
        assert bool(re.fullmatch(PATTERNS["date"], text)) == is_date(text), text


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("2024-02-29T10:00:59Z", True),
        ("2023-02-29T10:00:59Z", False),
        ("0835-12-31t04:58:60+17:29", False),  # RFC 3339 has such a second at 23:59:60 of some days only
        ("2000-02-29T23:59:59.123-09:30", True),
        ("2000-02-29T24:00:00Z", False),
        ("2000-02-29T23:59:59", False),
    ],
)
def test_a_time_of_a_day_is_one_that_parsers_read(text: str, allowed: bool) -> None:
    if allowed:
        datetime.fromisoformat(text)
    assert takes({"type": "string", "format": "date-time"}, f'"{text}"') == allowed


def test_other_conditions_hold_beside_a_format_and_values_are_left_alone() -> None:
    later = {"type": "string", "format": "date", "pattern": "^2"}
    named = {"type": "object", "properties": {"format": {"type": "string", "format": "date"}}, "required": ["format"]}
    constant = {"const": {"format": "date"}}

    assert (takes(later, '"2024-04-30"'), takes(later, '"1999-04-30"')) == (True, False)
    assert (takes(named, '{"format":"2024-04-30"}'), takes(named, '{"format":"2024-04-31"}')) == (True, False)
    assert takes(constant, '{"format":"date"}')
    assert takes({"format": "date"}, "[]")  # a format says nothing of other types
