"""ChatTemplate: messages to the token ids of a prompt, by the model's own template, as transformers renders it.

Special tokens that the template writes (`<|im_end|>`) become themselves. The same characters in a message stay
characters: nobody can end a message, or begin one in another's name, by writing so.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.errors import InvalidInputError
from pipelines.misfit import shown
from pipelines.runtime.artifact import TokenizerSettings
from pipelines.runtime.tokenizer import Tokenizer

Message = Mapping[str, Any]
_NAMES = ("role", "type", "id", "tool_call_id")  # templates compare them
_TOOLS_OF_MESSAGE = re.compile(r"""message(?:\.tools\b|\[['"]tools['"]\])""")
_MARKS = range(0xE000, 0xF8FF)  # Unicode's private use area: one that no message has stands around each of them


class ChatTemplate:
    """A template in Jinja's sandbox, with the functions and settings that transformers gives it.

    `encode` raises InvalidInputError for messages that the template refuses, or cannot render.
    """

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self._special_tokens = _special_tokens(tokenizer.settings, tokenizer.token)

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template writes tools."""
        return self._takes_tools or self._has_tools_in_system

    @cached_property
    def _takes_tools(self) -> bool:
        return "tools" in meta.find_undeclared_variables(_environment().parse(self._template))

    @cached_property
    def _has_tools_in_system(self) -> bool:
        """Whether tools are a text in the system's message, as in Phi-4's template."""
        return not self._takes_tools and _TOOLS_OF_MESSAGE.search(self._template) is not None

    def encode(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> tuple[int, ...]:
        """The ids of the prompt that asks for the assistant's next message."""
        if found := next((text for text in _texts(tools) if self._special.search(text)), None):
            problem = f"has {shown(found)}, in which a special token stands; allowed: without"
            raise InvalidInputError(problem, ("tools",))
        if tools and self._has_tools_in_system:
            messages, tools = _with_tools(messages, tools), None
        if not any(self._special.search(text) for text in _texts(messages)):
            (encoding,) = self._tokenizer.encode(
                [self._rendered(messages, tools)], add_special_tokens=False, offsets=False
            )
            return tuple(encoding.ids)
        used = {*"".join(_texts(messages)), *"".join(_texts(tools)), *self._template}
        mark = next((chr(code) for code in _MARKS if chr(code) not in used), None)
        if mark is None:
            every = "has every character of U+E000 to U+F8FE beside a special token; allowed: text that leaves one out"
            raise InvalidInputError(every, ("messages",))
        marked = [self._marked(message, mark) for message in messages]
        return tuple(self._encode_marked(self._rendered(marked, tools), mark))

    def _marked(self, message: Message, mark: str) -> dict[str, Any]:
        """A message whose texts begin and end with `mark`, inside of the spaces that templates trim away."""

        def around(name: str, value: Any) -> Any:
            if isinstance(value, str):
                as_is = name in _NAMES and not self._special.search(value)
                return value if as_is else _around(value, mark)
            if isinstance(value, list):
                return [around(name, one) for one in value]
            if isinstance(value, dict):
                if any(self._special.search(key) for key in value):
                    raise InvalidInputError("has a special token in a name; allowed: in values only", ("messages",))
                return type(value)((key, around(key, one)) for key, one in value.items())
            return value

        return {name: around(name, value) for name, value in message.items()}

    def _encode_marked(self, prompt: str, mark: str) -> list[int]:
        """Ids of a prompt in which `mark` stands at both ends of what was sent: no special token comes from there."""
        (encoding,) = self._tokenizer.encode([prompt], add_special_tokens=False)
        ids: list[int] = []
        position = counted = marks = 0  # `marks` stand before `counted`, the start of the token before this one
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            marks += prompt.count(mark, counted, start) - prompt.count(mark, start, counted)
            counted = start
            is_template = marks % 2 == 0
            if token_id in self._special_ids and is_template and mark not in prompt[start:end]:
                ids += self._literally(prompt[position:start].replace(mark, ""))
                ids.append(token_id)
                position = end
        return ids + self._literally(prompt[position:].replace(mark, ""))

    def _literally(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode_literally(text).ids if text else []
        for special in self._special_ids.intersection(ids):
            token = self._tokenizer.token(special)
            problem = f"has {token!r}, which cannot be read as text here; allowed: without it"
            raise InvalidInputError(problem, ("messages",))
        return ids

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str:
        try:
            text: str = self._compiled.render(
                messages=messages, tools=tools, add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:  # whatever a template raises over messages that it was not written for
            # Some need a description, others write whatever is there.
            if any("description" not in tool["function"] for tool in tools or ()):
                return self._rendered(messages, [_described(tool) for tool in tools or ()])
            reason = str(error) or type(error).__name__
            problem = f"cannot be put into the model's chat template: {reason}"
            raise InvalidInputError(problem, ("messages",)) from None
        return text

    @cached_property
    def _compiled(self) -> Any:
        return _environment().from_string(self._template)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return self._tokenizer.special_ids - {self._tokenizer.settings.unk_token_id}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokens = sorted(filter(None, map(self._tokenizer.token, self._special_ids)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)", re.IGNORECASE)


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training; here its content is what it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def _environment() -> Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **layout: Any) -> str:
    """Jinja's own filter would escape what HTML does not like."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **layout)


def _special_tokens(settings: TokenizerSettings, token: Callable[[int], str]) -> dict[str, str]:
    """`bos_token` and the like, by the names that templates use; those that the model lacks are undefined."""
    ids = {name: getattr(settings, f"{name}_id") for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return {name: token(token_id) for name, token_id in ids.items() if token_id is not None}


def _with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with the functions in that of the system, which may be a new one."""
    first, *others = messages if messages[0]["role"] == "system" else ({"role": "system", "content": ""}, *messages)
    return [{**first, "tools": _to_json([tool["function"] for tool in tools])}, *others]


def _described(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool with a description, which may be empty."""
    function = tool["function"]
    return {**tool, "function": {"name": function["name"], "description": "", **function}}


def _texts(value: Any) -> Iterator[str]:
    """All texts in messages or tools, names of keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield name
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _around(text: str, mark: str) -> str:
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    return f"{text[:start]}{mark}{core}{mark}{text[start + len(core) :]}"
