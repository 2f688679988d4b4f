"""Chat completions: messages, by the model's own template, to the assistant's next one.

A message is `{"role", "content", "name"?}`: the role is system (or developer, its newer name), user or assistant; the
content a text, or a list of parts `{"type": "text", "text"}` that are joined by line breaks.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from deployments.protocols.openai.chat_template import ChatTemplate
from deployments.protocols.openai.protocol import OpenAi, _flag
from pipelines.errors import InvalidInputError
from pipelines.schema import parse, shown
from pipelines.tasks.completion import CompletionPipeline, Piece, ScoredToken

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_EMPTY: tuple[Any, ...] = (None, [], {}, "")


class ChatCompletions(OpenAi):
    """`POST /v1/chat/completions`."""

    object = "chat.completion"
    prefix = "chatcmpl-"
    prompt_key = "messages"
    extra_keys = ("top_logprobs", "max_completion_tokens")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "moderation": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
    }

    def __init__(self, pipeline: CompletionPipeline, template: ChatTemplate | None) -> None:
        super().__init__(pipeline)
        self._template = template

    @property
    def chunk_object(self) -> str:
        return "chat.completion.chunk"

    def _inputs(self, given: Mapping[str, Any]) -> list[Any]:
        messages = given.get("messages")
        if messages is None:
            raise InvalidInputError("messages is missing; allowed: a list of messages")
        if not isinstance(messages, list) or not messages:
            raise InvalidInputError(f"messages is {shown(messages)}; allowed: a list of at least one message")
        read = [_message(one, f"messages[{index}]") for index, one in enumerate(messages)]
        if self._template is None:
            raise InvalidInputError("messages is set; allowed: /v1/completions only, as the model has no chat template")
        return [self._template.encode(read)]

    def _parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        logprobs = _flag(given, "logprobs")
        if "top_logprobs" in given and not logprobs:
            raise InvalidInputError("top_logprobs is set; allowed: only with logprobs true")
        if "max_tokens" in given and "max_completion_tokens" in given:
            raise InvalidInputError("max_tokens is set beside max_completion_tokens; allowed: one of them")
        parameters = {"logprobs": logprobs, "top_logprobs": given.get("top_logprobs", 0)}
        if "max_completion_tokens" in given:
            parameters["max_tokens"] = given["max_completion_tokens"]
        return parameters

    def _whole(self, index: int, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(piece),
            "finish_reason": piece.finish_reason,
        }

    def _chunks(self, index: int, piece: Piece, *, is_first: bool) -> list[dict[str, Any]]:
        chunks: list[tuple[dict[str, str], Any, str | None]] = []
        if is_first:
            chunks.append(({"role": "assistant", "content": ""}, None, None))
        if piece.text or piece.tokens:
            chunks.append(({"content": piece.text}, _logprobs(piece), None))
        if piece.finish_reason:
            chunks.append(({}, None, piece.finish_reason))
        return [
            {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            for delta, logprobs, reason in chunks
        ]


def _message(given: Any, where: str) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"{where} is {shown(given)}; allowed: an object with role and content")
    for name, value in given.items():
        if name not in ("role", "content", "name") and value not in _EMPTY:
            raise InvalidInputError(f"{where}.{shown(name)[1:-1]} is not supported; allowed: role, content, name")
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidInputError(f"{where}.role is {shown(role)}; allowed: {', '.join(ROLES)}")
    message = {"role": ROLES[role], "content": _content(given.get("content"), f"{where}.content")}
    if given.get("name") is not None:
        message["name"] = parse(given["name"], str, (f"{where}.name",))
    return message


def _content(given: Any, where: str) -> str:
    if not isinstance(given, list):
        text: str = parse(given, str, (where,))
        return text
    texts = []
    for index, part in enumerate(given):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise InvalidInputError(f"{where}[{index}] is of the type {shown(kind)}; allowed: text")
        texts.append(parse(part.get("text"), str, (f"{where}[{index}].text",)))
    return "\n".join(texts)


def _logprobs(piece: Piece) -> dict[str, Any] | None:
    if not piece.tokens:
        return None
    return {"content": [_scored(token) for token in piece.tokens], "refusal": None}


def _scored(token: ScoredToken) -> dict[str, Any]:
    top = [_described(text, logprob) for text, logprob in token.top]
    return {**_described(token.text, token.logprob), "top_logprobs": top}


def _described(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
