"""Completions: prompts, as texts or token ids, one or a list of them, and what goes on from each."""

from collections.abc import Mapping
from typing import Any, ClassVar

from deployments.protocols.openai.protocol import OpenAi, _flag
from pipelines.errors import InvalidInputError
from pipelines.schema import parse, shown
from pipelines.tasks.completion import Piece

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MOST_LOGPROBS = 5  # OpenAI's
_ALLOWED = "a text, a list of token ids, or a list of either"


class Completions(OpenAi):
    """`POST /v1/completions`."""

    object = "text_completion"
    prefix = "cmpl-"
    prompt_key = "prompt"
    extra_keys = ("echo", "best_of")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"suffix": ("",)}

    def _inputs(self, given: Mapping[str, Any]) -> list[Any]:
        prompt = given.get("prompt")
        if prompt is None:
            raise InvalidInputError(f"prompt is missing; allowed: {_ALLOWED}")
        if isinstance(prompt, list) and prompt and not _is_number(prompt[0]):
            return [_prompt(one, f"prompt[{index}]") for index, one in enumerate(prompt)]
        return [_prompt(prompt, "prompt")]

    def _parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("best_of", 1) not in (1, given.get("n", 1)):
            raise InvalidInputError(f"best_of is {shown(given['best_of'])}; allowed, as it is not supported: n")
        parameters: dict[str, Any] = {"echo": _flag(given, "echo")}
        parameters["max_tokens"] = given.get("max_tokens", DEFAULT_MAX_TOKENS)
        logprobs = given.get("logprobs")
        if logprobs is not None:
            if not _is_number(logprobs) or not 0 <= logprobs <= MOST_LOGPROBS:
                raise InvalidInputError(f"logprobs is {shown(logprobs)}; allowed: 0 to {MOST_LOGPROBS}")
            parameters |= {"logprobs": True, "top_logprobs": logprobs}
        return parameters

    def _whole(self, index: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": index,
            "text": piece.text,
            "logprobs": _logprobs(piece),
            "finish_reason": piece.finish_reason,
        }

    def _chunks(self, index: int, piece: Piece, *, is_first: bool) -> list[dict[str, Any]]:
        adds = piece.text or piece.tokens or piece.finish_reason
        return [self._whole(index, piece)] if adds else []


def _prompt(given: Any, where: str) -> str | tuple[int, ...]:
    if isinstance(given, list) and given and all(_is_number(one) for one in given):
        return tuple(given)
    if isinstance(given, str):
        text: str = parse(given, str, (where,))
        return text
    raise InvalidInputError(f"{where} is {shown(given)}; allowed: {_ALLOWED}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _logprobs(piece: Piece) -> dict[str, Any] | None:
    if not piece.tokens:
        return None
    return {
        "tokens": [token.text for token in piece.tokens],
        "token_logprobs": [token.logprob for token in piece.tokens],
        "top_logprobs": [dict(token.top) if token.logprob is not None else None for token in piece.tokens],
        "text_offset": [token.offset for token in piece.tokens],
    }
