"""Chat completions: messages, by the model's own template, to the assistant's next one.

A message is `{"role", "content", "name"?}`: the role is system (or developer, its newer name), user or assistant; the
content a text, or a list of parts `{"type": "text", "text"}` that are joined by line breaks.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from deployments.protocols.openai.chat_template import ChatTemplate
from deployments.protocols.openai.protocol import (
    CompletionRequest,
    EmptyList,
    EmptyObject,
    Label,
    OpenAi,
    OpenAiBody,
)
from deployments.protocols.protocol import texts_of
from pipelines.errors import InvalidInputError, Path
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
    """A message; what an assistant's may hold besides its content must be empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Meta(max_length=MAX_PARTS)]
    name: Label | None = None
    refusal: Empty = None
    tool_calls: Empty = None
    tool_call_id: Empty = None
    function_call: Empty = None
    audio: Empty = None
    annotations: Empty = None
    reasoning: Empty = None
    reasoning_content: Empty = None

    def for_template(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        message = {"role": _ROLES.get(self.role, self.role), "content": content}
        return message if self.name is None else message | {"name": self.name}


class TextFormat(Body, frozen=True):
    """The only format of an answer."""

    type: Literal["text"]


class ChatBody(OpenAiBody, frozen=True, kw_only=True):
    """A body of `/v1/chat/completions`. `max_completion_tokens` is the newer name of `max_tokens`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: EmptyList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: None = None
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
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


class ChatRequest(CompletionRequest):
    """A request whose one input is a list of messages."""

    def texts(self, given: Any) -> Iterator[str]:
        for message in given:
            yield from texts_of([message.name or "", message.content])


class ChatCompletions(OpenAi):
    """`POST /v1/chat/completions`."""

    request_type = ChatRequest

    object = "chat.completion"
    prefix = "chatcmpl-"
    path = "/v1/chat/completions"
    renamed: ClassVar[Mapping[str, Path]] = {"inputs": ("messages",), "parameters": ()}

    def __init__(self, pipeline: CompletionPipeline, template: ChatTemplate | None) -> None:
        super().__init__(pipeline)
        self._template = template

    @property
    def chunk_object(self) -> str:
        return "chat.completion.chunk"

    def read(self, body: bytes, headers: Mapping[str, str]) -> CompletionRequest:
        given: ChatBody = decode(body, ChatBody)
        self.check_model(given.model, headers)
        if self._template is None:
            only = "is set; allowed: /v1/completions only, as the model has no chat template"
            raise InvalidInputError(only, ("messages",))
        budget = given.max_tokens if given.max_completion_tokens is None else given.max_completion_tokens
        parameters = given.sampling(max_tokens=budget, logprobs=given.logprobs, top_logprobs=given.top_logprobs or 0)
        return self.request(given, [given.messages], parameters)

    def parse(self, request: CompletionRequest) -> tuple[list[Any], Any]:
        """The token ids of the prompt that the model's template makes of the messages."""
        assert self._template is not None, "read refuses messages without it"
        (messages,) = request.inputs
        return [self._template.encode([message.for_template() for message in messages])], request.parameters

    def _whole(self, index: int, delta: ChoiceDelta) -> dict[str, Any]:
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(delta),
            "finish_reason": delta.finish_reason,
        }

    def _chunks(self, index: int, delta: ChoiceDelta, *, is_first: bool) -> list[dict[str, Any]]:
        chunks: list[tuple[dict[str, str], Any, str | None]] = []
        if is_first:
            chunks.append(({"role": "assistant", "content": ""}, None, None))
        if delta.text or delta.tokens:
            chunks.append(({"content": delta.text}, _logprobs(delta), None))
        if delta.finish_reason:
            chunks.append(({}, None, delta.finish_reason))
        return [
            {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            for delta, logprobs, reason in chunks
        ]


def _logprobs(delta: ChoiceDelta) -> dict[str, Any] | None:
    if not delta.tokens:
        return None
    return {"content": [_scored(token) for token in delta.tokens], "refusal": None}


def _scored(token: ScoredToken) -> dict[str, Any]:
    top = [_described(text, logprob) for text, logprob in token.top]
    return {**_described(token.text, token.logprob), "top_logprobs": top}


def _described(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
