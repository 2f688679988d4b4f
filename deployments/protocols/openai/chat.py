"""Chat completions: messages, by the model's own template, to the assistant's next one.

A message is `{"role", "content", "name"?}`: the role is system (or developer, its newer name), user, assistant or tool;
the content a text, or a list of parts `{"type": "text", "text"}` that are joined by line breaks. An answer may call
tools.
"""

import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from deployments.protocols.model_name import require_model
from deployments.protocols.openai.call_format import CallFormat
from deployments.protocols.openai.call_parser import Arguments, Begun, CallParser, Content
from deployments.protocols.openai.chat_template import ChatTemplate
from deployments.protocols.openai.protocol import (
    CompletionRequest,
    EmptyList,
    EmptyObject,
    Label,
    OpenAi,
    OpenAiBody,
    prompt_logprobs,
)
from deployments.protocols.openai.tools import (
    MAX_CALL_ID_CHARACTERS,
    MAX_TOOLS,
    NamedTool,
    Tool,
    ToolCall,
    ToolUse,
    texts_of_tools,
)
from deployments.protocols.protocol import Reply, texts_of
from pipelines.errors import InvalidInputError, Path
from pipelines.generation.decoding.guide import Constraint
from pipelines.misfit import nearest, require
from pipelines.schema import Body, decode
from pipelines.tasks.completion import MAX_TOP_LOGPROBS, ChoiceDelta, CompletionPipeline, ScoredToken
from pipelines.tasks.generator import Count

MAX_MESSAGES = 4096
MAX_PARTS = 1024
_ROLES = {"developer": "system"}
Empty = Annotated[str, Meta(max_length=0)] | EmptyList | EmptyObject | None


class Part(msgspec.Struct, frozen=True):
    """A part of a content; others than texts are refused. Hints such as `cache_control` may stand beside."""

    type: Literal["text"]
    text: str


class Message(Body, frozen=True):
    """A message. The assistant's may have `tool_calls`, a tool's has the `tool_call_id` of its call. What
    else an answer may hold besides its content must be empty.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Meta(max_length=MAX_PARTS)] | None = None
    name: Label | None = None
    refusal: Empty = None
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=MAX_CALL_ID_CHARACTERS)] | None = None  # "" is none
    function_call: Empty = None
    audio: Empty = None
    annotations: Empty = None
    reasoning: Empty = None
    reasoning_content: Empty = None

    def __post_init__(self) -> None:
        calls = self.role == "assistant" and bool(self.tool_calls)
        require(self.content is not None or calls, ("content",), None, "a string or a list of parts")
        require(calls or not self.tool_calls, ("tool_calls",), self.tool_calls, "with the role assistant only")
        is_result = self.role == "tool"
        allowed = "the id of a call" if is_result else "with the role tool only"
        require(bool(self.tool_call_id) == is_result, ("tool_call_id",), self.tool_call_id, allowed)

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or ())
        message: dict[str, Any] = {"role": _ROLES.get(self.role, self.role), "content": content}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


class ChatBody(OpenAiBody, frozen=True, kw_only=True):
    """A body of `/v1/chat/completions`. `max_completion_tokens` is the newer name of `max_tokens`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    modalities: Annotated[list[Literal["text"]], Meta(min_length=1, max_length=1)] | None = None
    audio: None = None
    moderation: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidInputError("is set; allowed: only with logprobs true", ("top_logprobs",))
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidInputError("is set beside max_completion_tokens; allowed: one of them", ("max_tokens",))
        self._require_calls()

    def _require_calls(self) -> None:
        """Each result of a tool answers a call that came before; the template may want the name of its function."""
        called: set[str] = set()
        for index, message in enumerate(self.messages):
            called.update(call.id for call in message.tool_calls or ())
            if message.tool_call_id and message.tool_call_id not in called:
                allowed = f"the id of a call before it{nearest(message.tool_call_id, called)}"
                require(False, ("messages", index, "tool_call_id"), message.tool_call_id, allowed)


@dataclass(frozen=True)
class ChatRequest(CompletionRequest):
    """A request whose one input is a list of messages; `use` is what may be called."""

    use: ToolUse | None = None

    def texts(self, given: Any) -> Iterator[str]:
        if self.use is not None:
            yield from texts_of_tools(self.use.tools)
        for message in given:
            yield from texts_of([message.name or "", message.content])
            for call in message.tool_calls or ():
                yield from (call.function.name, call.function.arguments)


@dataclass(frozen=True)
class CallingDelta(ChoiceDelta):
    """A delta without the text of calls, and what it adds to them; `has_calls` once there is one."""

    calls: tuple[Begun | Arguments, ...] = ()
    has_calls: bool = False


class ChatCompletions(OpenAi):
    """`POST /v1/chat/completions`."""

    request_type = ChatRequest

    object = "chat.completion"
    prefix = "chatcmpl-"
    path = "/v1/chat/completions"
    renamed: ClassVar[Mapping[str, Path]] = {"inputs": ("messages",), "parameters": ()}

    def __init__(self, pipeline: CompletionPipeline, template: ChatTemplate | None, format: CallFormat | None) -> None:
        """`format` is how the model writes calls; None for a template that teaches none that is known."""
        super().__init__(pipeline)
        self._template, self._format = template, format
        self._token_id = pipeline.tokenizer.token_id

    @property
    def chunk_object(self) -> str:
        return "chat.completion.chunk"

    def read(self, body: bytes, headers: Mapping[str, str]) -> CompletionRequest:
        given: ChatBody = decode(body, ChatBody)
        require_model(self, self.path, given.model, headers)
        if self._template is None:
            only = "is set; allowed: /v1/completions only, as the model has no chat template"
            raise InvalidInputError(only, ("messages",))
        use = ToolUse.of(given.tools or (), given.tool_choice, given.parallel_tool_calls)
        budget = given.max_tokens if given.max_completion_tokens is None else given.max_completion_tokens
        parameters = given.sampling(
            max_tokens=budget,
            logprobs=given.logprobs,
            top_logprobs=given.top_logprobs or 0,
            **({} if use is None else self._calling(use, given.constraint)),
        )
        request = self.request(given, [given.messages], parameters)
        assert isinstance(request, ChatRequest)
        return replace(request, use=use)

    def _calling(self, use: ToolUse, document: Constraint | None) -> dict[str, Any]:
        """The parameters of an answer that may call tools."""
        if self._format is None:
            problem = "is set; allowed: without, as the model's chat template has no tools, or an unknown call format"
            raise InvalidInputError(problem, ("tools",))
        markers = (self._token_id(marker) for marker in self._format.markers)
        shown = tuple(token for token in markers if token is not None)
        if not use.is_guided and document is None:
            return {"shown_tokens": shown}
        return {"shown_tokens": shown, "constraint": self._format.grammar(use, self._token_id, document)}

    def parse(self, request: CompletionRequest) -> tuple[list[Any], Any]:
        """The token ids of the prompt that the model's template makes of the messages."""
        assert self._template is not None, "read refuses messages without it"
        assert isinstance(request, ChatRequest)
        (messages,) = request.inputs
        tools = None if request.use is None else request.use.for_template()
        return [self._template.encode(_for_template(messages), tools)], request.parameters

    def write(self, request: CompletionRequest, answers: Sequence[list[ChoiceDelta]]) -> Reply:
        if (parsers := self._parsers(request)) is not None:
            answers = [[_parsed(parsers(), delta) for delta in of_prompt] for of_prompt in answers]
        return super().write(request, answers)

    async def stream(
        self, request: CompletionRequest, events: AsyncGenerator[tuple[int, ChoiceDelta], None]
    ) -> AsyncGenerator[Any, None]:
        if (parsers := self._parsers(request)) is not None:
            events = _parsed_events(parsers, events)
        async with aclosing(super().stream(request, events)) as payloads:
            async for payload in payloads:
                yield payload

    def _parsers(self, request: CompletionRequest) -> Callable[[], CallParser] | None:
        """What makes the parser of an answer; None where no tool may be called."""
        assert isinstance(request, ChatRequest)
        if request.use is None or self._format is None:
            return None
        return partial(CallParser, self._format, [name for name, _ in request.use.schemas])

    def _whole(self, index: int, delta: ChoiceDelta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": delta.text, "refusal": None}
        if isinstance(delta, CallingDelta) and delta.has_calls:
            message |= {"content": delta.text or None, "tool_calls": _calls(delta.calls)}
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(delta),
            "finish_reason": _reason(delta),
        }

    def _of_prompt(self, delta: ChoiceDelta) -> dict[str, Any]:
        return {"prompt_logprobs": prompt_logprobs(delta)} if delta.prompt else {}

    def _chunks(self, index: int, delta: ChoiceDelta, *, is_first: bool) -> list[dict[str, Any]]:
        chunks: list[tuple[dict[str, Any], Any, str | None]] = []
        if is_first:
            chunks.append(({"role": "assistant", "content": ""}, None, None))
        if delta.text or delta.tokens:
            chunks.append(({"content": delta.text}, _logprobs(delta), None))
        if isinstance(delta, CallingDelta):
            chunks += [({"tool_calls": [_call_delta(call)]}, None, None) for call in delta.calls]
        if delta.finish_reason:
            chunks.append(({}, None, _reason(delta)))
        return [
            {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            for delta, logprobs, reason in chunks
        ]


def _for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them. A result has the name of its function, which Hermes' template wants."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    given = [message.for_template() for message in messages]
    return [{"name": names[one["tool_call_id"]], **one} if "tool_call_id" in one else one for one in given]


def _parsed(parser: CallParser, delta: ChoiceDelta) -> CallingDelta:
    """A delta, or a whole answer, whose calls are parsed."""
    found = parser.push(delta.text)
    if delta.finish_reason is not None:
        found += parser.finish()
    text = "".join(one.text for one in found if isinstance(one, Content))
    calls = tuple(one for one in found if not isinstance(one, Content))
    fields = {name: getattr(delta, name) for name in ChoiceDelta.__dataclass_fields__} | {"text": text}
    return CallingDelta(**fields, calls=calls, has_calls=parser.calls > 0)


async def _parsed_events(
    parsers: Callable[[], CallParser], events: AsyncGenerator[tuple[int, ChoiceDelta], None]
) -> AsyncGenerator[tuple[int, ChoiceDelta], None]:
    """The events of a stream, whose calls are parsed; each choice has a parser of its own."""
    of_choice: dict[int, CallParser] = {}
    async with aclosing(events):
        async for index, delta in events:
            if index not in of_choice:
                of_choice[index] = parsers()
            yield index, _parsed(of_choice[index], delta)


def _reason(delta: ChoiceDelta) -> str | None:
    calls = isinstance(delta, CallingDelta) and delta.has_calls
    return "tool_calls" if calls and delta.finish_reason == "stop" else delta.finish_reason


def _calls(events: Sequence[Begun | Arguments]) -> list[dict[str, Any]]:
    """The calls of a whole answer."""
    calls = [_call(event.name, "") for event in events if isinstance(event, Begun)]
    for event in events:
        if isinstance(event, Arguments):
            calls[event.index]["function"]["arguments"] += event.text
    return calls


def _call_delta(event: Begun | Arguments) -> dict[str, Any]:
    """What a stream adds to a call."""
    if isinstance(event, Begun):
        return {"index": event.index} | _call(event.name, "")
    return {"index": event.index, "function": {"arguments": event.text}}


def _call(name: str, arguments: str) -> dict[str, Any]:
    identity = secrets.token_hex(5)[:9]  # Mistral's templates take ids of nine letters and digits only
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _logprobs(delta: ChoiceDelta) -> dict[str, Any] | None:
    if not delta.tokens:
        return None
    return {"content": [_scored(token) for token in delta.tokens], "refusal": None}


def _scored(token: ScoredToken) -> dict[str, Any]:
    top = [_described(text, logprob) for text, logprob in token.top]
    return {**_described(token.text, token.logprob), "top_logprobs": top}


def _described(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
