"""Calls of tools in the text of an answer, in every format, however the text is cut into tokens."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.protocols.openai.call_format import CallFormat
from deployments.protocols.openai.call_parser import Arguments, Begun, CallParser, Content, Event

MARKS = {
    "hermes": "<tool_call>",
    "llama": '{"name": function name, "parameters": dictionary}',
    "mistral": "[TOOL_CALLS]",
    "named mistral": "[TOOL_CALLS] [ARGS]",
    "phi": "<|tool_call|>",
    "functionary": "<function=example>",
}
BOTH = ("", ["f", "g"], ['{"a": "}]\\"", "b": [1, {"c": 2}]}', "{}"])
F = '{"a": "}]\\"", "b": [1, {"c": 2}]}'
ANSWERS: list[tuple[str, str, tuple[str, list[str], list[str]] | None]] = [
    (
        "hermes",
        f'<tool_call>\n{{"name": "f", "arguments": {F}}}\n</tool_call>\n<tool_call>\n{{"name": "g", "arguments": {{}}}}'
        "\n</tool_call>",
        BOTH,
    ),
    ("hermes", 'I look.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>', ("I look.", ["f"], ["{}"])),
    ("hermes", '<tool_call>\n{"arguments": {"a": 1}, "name": "f"}\n</tool_call>', ("", ["f"], ['{"a": 1}'])),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>', ("", ["f"], ['{"a": 1}'])),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1', ("", ["f"], ['{"a": 1'])),
    ("hermes", '<tool_call>\n{"name": "h", "arguments": {}}\n</tool_call> x', None),
    ("hermes", '<tool_call>\n{"name": "f", "argu', None),
    ("hermes", "a < b, <tool> and <tool_", None),
    ("llama", f'{{"name": "f", "parameters": {F}}}; {{"name": "g", "parameters": {{}}}}', BOTH),  # beyond its template
    ("llama", '<|python_tag|>{"name": "f", "parameters": {}}', ("", ["f"], ["{}"])),
    ("llama", '{"answer": 3}', None),
    ("llama", 'Use {"name": "f", "parameters": {}}', None),
    ("llama", '{"name": "h", "parameters": {"a": 1}}', None),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {F}, "id": "a]b"}}, {{"name": "g", "arguments": {{}}}}]',
        BOTH,
    ),
    ("named mistral", f"[TOOL_CALLS]f[ARGS]{F}[TOOL_CALLS]g[ARGS]{{}}", BOTH),
    (
        "phi",
        f'<|tool_call|>[{{"name": "f", "arguments": {F}}}, {{"name": "g", "arguments": {{}}}}]<|/tool_call|>',
        BOTH,
    ),
    ("phi", '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]', ("", ["f"], ['{"a": 1}'])),
    ("functionary", f"<function=f>{F}</function>\n<function=g>{{}}</function>", BOTH),
    ("functionary", "Hi <function=h>{}</function>", None),
]


def summary(events: list[Event]) -> tuple[str, list[str], list[str]]:
    names = [event.name for event in events if isinstance(event, Begun)]
    arguments = ["" for _ in names]
    for event in events:
        if isinstance(event, Arguments):
            arguments[event.index] += event.text
    return "".join(event.text for event in events if isinstance(event, Content)), names, arguments


@pytest.mark.parametrize(("form", "text", "expected"), ANSWERS)
@given(cuts=st.lists(st.integers(0, 150), max_size=40))
def test_calls_are_found_however_the_text_is_cut(
    form: str, text: str, expected: tuple[str, list[str], list[str]] | None, cuts: list[int]
) -> None:
    """Where there is no call, all of the text is content."""
    format = CallFormat.of(MARKS[form])
    assert format is not None
    parser, places = CallParser(format, ["f", "g"]), sorted({0, *cuts, len(text)})
    events = [event for start, end in pairwise(places) for event in parser.push(text[start:end])]

    found = summary([*events, *parser.finish()])

    assert found == (expected or (text, [], []))


def test_arguments_come_as_they_are_written() -> None:
    format = CallFormat.of(MARKS["hermes"])
    assert format is not None
    parser = CallParser(format, ["f"])

    first = parser.push('<tool_call>\n{"name": "f", "arguments": {"a"')
    second = parser.push(": 1")

    assert first == [Begun(0, "f"), Arguments(0, '{"a"')]
    assert second == [Arguments(0, ": 1")]


def test_a_template_of_another_format_has_none() -> None:
    assert CallFormat.of("{{ messages }}") is None
    assert CallFormat.of("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>") is None
