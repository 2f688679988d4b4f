"""CallParser: the text of an answer, as it comes, to content and calls of tools.

    push(text) -> [Content | Begun | Arguments ...]

Arguments are passed on as the model writes them, so that a client sees them while they come.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from deployments.protocols.openai.call_format import CallFormat

_SPACES = " \n\t\r"
_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')
_MAX_NAME = 256  # characters before which the name of a call ends


@dataclass(frozen=True)
class Content:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True)
class Begun:
    """Call number `index` begins."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """What the JSON of the arguments of call number `index` gained."""

    index: int
    text: str


Event = Content | Begun | Arguments


class CallParser:
    """Reads one answer. What begins like a call and is none, or is one of no tool in `names`, is content."""

    def __init__(self, format: CallFormat, names: Collection[str]) -> None:
        self._format, self._names = format, names
        self._text = ""  # not understood yet
        self._held = ""  # what was skipped since the last event: content, where no call follows
        self._has_content = False
        self._read = self._content
        self._value = _Value()
        self._events: list[Event] = []
        self.calls = 0
        """How many have begun."""

    def push(self, text: str) -> list[Event]:
        """What the text adds."""
        self._text += text
        while True:
            before = self._read, len(self._text)
            self._read()
            if (self._read, len(self._text)) == before:
                events, self._events = self._events, []
                return events

    def finish(self) -> list[Event]:
        """What was held back, at the end of the answer. Arguments may be cut there."""
        rest = "" if self._read in (self._arguments, self._tail) else self._held + self._text
        self._text = self._held = ""
        return [Content(rest)] if rest and (rest.strip() or not self.calls) else []

    def _content(self) -> None:
        """Pass text on, up to the mark of a call. Spaces wait: before a call they are nothing."""
        begin = self._format.begin
        if not begin:
            self._unmarked()
            return
        place = self._text.find(begin)
        if place >= 0:
            self._pass(self._text[:place].rstrip())
            self._skip(self._text.index(begin) + len(begin))
            self._read = self._between
            return
        most = min(len(begin) - 1, len(self._text))
        held = next((n for n in range(most, 0, -1) if begin.startswith(self._text[-n:])), 0)
        self._pass(self._text[: len(self._text) - held].rstrip())

    def _unmarked(self) -> None:
        """Calls without a mark: the whole answer is calls, or none of it."""
        text = self._text.lstrip(_SPACES)
        also = self._format.also
        if self._has_content:
            self._pass(self._text)
        elif also and text.startswith(also):
            self._skip(len(self._text) - len(text) + len(also))
            self._read = self._between
        elif text.startswith("{"):
            self._read = self._between
        elif text and not also.startswith(text):
            self._pass(self._text)

    def _between(self) -> None:
        """Skip what stands before a call, or after the last one."""
        format, end = self._format, self._format.end.strip()
        spaces = _SPACES + (",[" if format.layout == "list" else "" if format.begin else ";")
        self._skip(len(self._text) - len(self._text.lstrip(spaces)))
        text = self._text
        if end and text.startswith(end):
            self._leave(len(end))
        elif format.begin and text.startswith(format.begin):
            self._skip(len(format.begin))
        elif not text or end.startswith(text) or format.begin.startswith(text):
            return
        elif format.layout == "list" and text[0] == "]":
            self._skip(1)
            self._held = ""
            if not end:
                self._leave(0)
        elif format.layout == "named":
            self._read = self._named
        elif text[0] == "{":
            self._read = self._object
        else:
            self._fail()

    def _object(self) -> None:
        """The beginning of an object, up to its arguments; the whole object where its name does not come first."""
        if head := _HEAD.match(self._text):
            self._begin(head[1], head.end())
        elif "}" in self._text:
            try:
                call, end = json.JSONDecoder().raw_decode(self._text)
            except ValueError:
                return  # it is not complete, or never will be
            arguments = call.get("arguments", call.get("parameters", {}))
            if self._begin(str(call.get("name")), end):
                self._events.append(Arguments(self.calls - 1, json.dumps(arguments, ensure_ascii=False)))
                self._read = self._between

    def _named(self) -> None:
        """A name, up to the mark after it."""
        name, mark, _ = self._text.partition(self._format.between)
        if mark:
            self._begin(name.strip(), len(name) + len(mark))
        elif len(self._text) > _MAX_NAME:
            self._fail()

    def _arguments(self) -> None:
        """The arguments, up to their end."""
        if not self._value.started:
            self._text = self._text.lstrip(_SPACES)
        end = self._value.end(self._text)
        length = len(self._text) if end is None else end
        if self._value.quoted is None:
            written = self._text[:length]
        else:  # the model wrote their JSON as a string
            written = "" if end is None else str(json.loads(self._value.quoted))
        if written:
            self._events.append(Arguments(self.calls - 1, written))
        self._text = self._text[length:]
        if end is not None:
            is_object = self._format.layout != "named"
            self._value, self._read = _Value(depth=1), self._tail if is_object else self._between

    def _tail(self) -> None:
        """What an object has after its arguments."""
        end = self._value.end(self._text)
        self._text = self._text[len(self._text) if end is None else end :]
        if end is not None:
            self._read = self._between

    def _begin(self, name: str, length: int) -> bool:
        """Begin a call, whose head has `length` characters; False where there is no such tool."""
        if name not in self._names:
            self._fail()
            return False
        self._events.append(Begun(self.calls, name))
        self.calls += 1
        self._text, self._held = self._text[length:], ""
        self._value, self._read = _Value(), self._arguments
        return True

    def _pass(self, text: str) -> None:
        if text:
            self._events.append(Content(text))
            self._has_content = self._has_content or bool(text.strip())
            self._text = self._text[len(text) :]

    def _skip(self, length: int) -> None:
        self._held, self._text = self._held + self._text[:length], self._text[length:]

    def _leave(self, length: int) -> None:
        """The calls have ended."""
        self._skip(length)
        self._held, self._read = "", self._content
        self._has_content = True

    def _fail(self) -> None:
        """What was held is no call."""
        self._text, self._held, self._read = self._held + self._text, "", self._content
        self._has_content = True
        if self._format.begin:  # a later mark may begin a call
            later = self._text.find(self._format.begin, 1)
            self._pass(self._text if later < 0 else self._text[:later])


class _Value:
    """Finds the end of a JSON value that comes in parts; with `depth` 1, of an object that is inside."""

    def __init__(self, depth: int = 0) -> None:
        self.started = depth > 0
        self.quoted: str | None = None
        """The value so far, where it is a string."""
        self._depth, self._is_quoted, self._is_escaped = depth, False, False

    def end(self, text: str) -> int | None:
        """Where the value ends in the text, which follows the one before; None where it goes on."""
        if not self.started and text:
            self.started = True
            self.quoted = "" if text[0] == '"' else None
        place = self._end(text)
        if self.quoted is not None:
            self.quoted += text[:place]
        return place

    def _end(self, text: str) -> int | None:
        for place, character in enumerate(text):
            if self._is_quoted:
                self._is_quoted = self._is_escaped or character != '"'
                self._is_escaped = character == "\\" and not self._is_escaped
                if not self._is_quoted and not self._depth:
                    return place + 1
            elif character == '"':
                self._is_quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                if not self._depth:
                    return place  # of a number or a word, by the object around it
                self._depth -= 1
                if not self._depth:
                    return place + 1
            elif character == "," and not self._depth:
                return place
        return None
