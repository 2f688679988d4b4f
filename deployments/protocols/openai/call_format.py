"""CallFormat: how a model writes calls of tools, as its chat template teaches it.

Hermes, Qwen   <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>
Llama 3        {"name": "f", "parameters": {...}}
Mistral        [TOOL_CALLS] [{"name": "f", "arguments": {...}}], Nemo without the space, or [TOOL_CALLS]f[ARGS]{...}
Phi-4          <|tool_call|>[{"name": "f", "arguments": {...}}]<|/tool_call|>
Functionary    <function=f>{...}</function>
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import dumps, loads
from typing import Any, Literal

from deployments.guidance.compiler import JSON_OPTIONS
from deployments.protocols.openai.tools import ToolUse
from pipelines.generation.decoding.guide import Constraint

MAX_CALLS = 16  # of one answer that is held to the format

_SLASH = re.compile(r"(?<!\\)/")

TokenId = Callable[[str], int | None]
"""The id of a token by its text; None where the vocabulary has none."""


@dataclass(frozen=True)
class CallFormat:
    """`begin` stands before a call, or before a list of them; "" where an answer that begins with `{` is a call.

    `layout`: an object with name and arguments, a list of such objects, or the name, `between` and the arguments.
    `arguments` is their key. `inside` stands between `begin` and a call, and between a call and `end`. `also` may stand
    in place of an empty `begin`. `separator` stands between calls; `alone` says that templates take one call only.
    """

    layout: Literal["object", "list", "named"]
    begin: str = ""
    end: str = ""
    inside: str = ""
    separator: str = ""
    between: str = ""
    arguments: str = "arguments"
    also: str = ""
    alone: bool = False

    @classmethod
    def of(cls, template: str) -> "CallFormat | None":
        """That of a chat template; None for one that teaches none of these."""
        if any(mark in template for mark in _OTHERS):
            return None
        return next((one for *marks, one in _FORMATS if all(str(mark) in template for mark in marks)), None)

    @property
    def markers(self) -> tuple[str, ...]:
        """What may be special tokens, whose text the answer has to keep."""
        return tuple(filter(None, (self.begin, self.end.strip(), self.between, self.also)))

    def grammar(self, use: ToolUse, token_id: TokenId, document: Constraint | None = None) -> Constraint:
        """Holds an answer to calls of tools; where none must be called, it may be a text, or a `document`, instead."""
        tools, several = use.schemas, use.several and not self.alone

        def literal(words: str) -> str:
            stripped = words.strip()
            number = token_id(stripped) if stripped else None
            if number is None:
                return dumps(words) if words else ""
            before, after = words.split(stripped, 1)
            return " ".join(filter(None, (before and dumps(before), f"<[{number}]>", after and dumps(after))))

        rules = []
        for index, (name, schema) in enumerate(tools):
            if self.layout == "named":
                rules.append(f"call_{index}: {dumps(name)} {literal(self.between)} arguments_{index}")
            else:
                head = dumps(f'{{"name": {dumps(name)}, {dumps(self.arguments)}: ')
                rules.append(f'call_{index}: {head} arguments_{index} "}}"')
            rules.append(f"arguments_{index}: {_json(schema)}")
        begin, end, inside = literal(self.begin), literal(self.end), dumps(self.inside) if self.inside else ""
        more = f"{{0,{MAX_CALLS - 1}}}"
        one = " | ".join(f"call_{index}" for index in range(len(tools)))
        rules.append(f"one: {one}")
        if self.layout == "list":
            some = f'one (", " one){more}' if several else "one"
            rules.append(f'calls: {begin} {inside} "[" {some} "]" {end}')
        else:
            rules.append(f"whole: {begin} {inside} one {end}")
            separator = dumps(self.separator) if self.separator else ""
            rules.append(f"calls: whole ({separator} whole){more}" if several else "calls: whole")
        if use.must:
            rules.append("start: calls")
        elif document is not None:
            rules += ["start: document | calls", f"document: {_rule(document)}"]
        elif self.begin:
            rules += ["start: TEXT? calls?", r"TEXT: /(.|\n)+/"]
        else:
            rules += ["start: TEXT | calls", r"TEXT: /[^{ \n](.|\n)*/"]
        parts = tuple(Constraint("json_schema", dumps(schema), use.place(name)) for name, schema in tools)
        return Constraint("lark", "\n".join(rules), ("tools",), (*parts, *(() if document is None else (document,))))


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


def _rule(document: Constraint) -> str:
    if document.kind == "json_schema":
        return _json(loads(document.text))
    return "/" + _SLASH.sub(r"\\/", document.text).replace("\n", "\\n") + "/"


_HERMES = CallFormat("object", "<tool_call>", "\n</tool_call>", "\n", "\n")
_LLAMA = CallFormat("object", arguments="parameters", also="<|python_tag|>", alone=True)
_MISTRAL = CallFormat("list", "[TOOL_CALLS]", inside=" ")
_NEMO = CallFormat("list", "[TOOL_CALLS]")
_NAMED_MISTRAL = CallFormat("named", "[TOOL_CALLS]", between="[ARGS]")
_PHI = CallFormat("list", "<|tool_call|>", "<|/tool_call|>")
_FUNCTIONARY = CallFormat("named", "<function=", "</function>", between=">", separator="\n")
_OTHERS = ("<parameter=", "<arg_key>", "<tool_call_begin", "tool_name")
"""Of formats that are not known though they have a mark of one: Qwen3-Coder's and GLM's XML, Cohere's objects."""
_FORMATS = (
    ("[ARGS]", _NAMED_MISTRAL),
    ("[TOOL_CALLS][", _NEMO),
    ("[TOOL_CALLS]", _MISTRAL),
    ("<|tool_call|>", _PHI),
    ("<|tool|>", _PHI),
    ("<function=", _FUNCTIONARY),
    ("<tool_call>", _HERMES),
    ('{"name": ', '"parameters": ', _LLAMA),
)
"""What a template has in it, all of it; the surest first."""
