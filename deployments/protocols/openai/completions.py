"""Completions: prompts, as texts or token ids, one or a list of them, and what goes on from each."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from deployments.protocols.model_name import require_model
from deployments.protocols.openai.protocol import CompletionRequest, OpenAi, OpenAiBody, prompt_logprobs
from pipelines.errors import Path
from pipelines.misfit import require
from pipelines.schema import decode
from pipelines.tasks.completion import MAX_PROMPT_IDS, ChoiceDelta
from pipelines.tasks.generator import Count, Sequences, TokenId

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_LOGPROBS = 5  # OpenAI's
_ALLOWED = "a text, a list of token ids, or a list of either"

Ids = Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_PROMPT_IDS)]


class CompletionBody(OpenAiBody, frozen=True, kw_only=True):
    """A body of `/v1/completions`."""

    prompt: str | Annotated[list[str | TokenId | Ids], Meta(max_length=MAX_PROMPT_IDS)]
    max_tokens: Count = DEFAULT_MAX_TOKENS
    echo: bool = False
    best_of: Sequences | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: Literal[""] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best_of not in (None, 1, self.n):
            require(False, ("best_of",), self.best_of, "n, as it is not supported")
        if isinstance(self.prompt, list):
            kinds = {isinstance(one, int) for one in self.prompt}
            require(len(kinds) == 1, ("prompt",), self.prompt, _ALLOWED)

    def prompts(self) -> tuple[list[str | tuple[int, ...]], bool]:
        """The prompts, and whether they came as a list of them."""
        if isinstance(self.prompt, str):
            return [self.prompt], False
        if isinstance(self.prompt[0], int):
            return [tuple(self.prompt)], False  # type: ignore[arg-type]
        return [one if isinstance(one, str) else tuple(one) for one in self.prompt], True  # type: ignore[arg-type]


class Completions(OpenAi):
    """`POST /v1/completions`."""

    object = "text_completion"
    prefix = "cmpl-"
    path = "/v1/completions"
    renamed: ClassVar[Mapping[str, Path]] = {"inputs": ("prompt",), "parameters": ()}

    def read(self, body: bytes, headers: Mapping[str, str]) -> CompletionRequest:
        given: CompletionBody = decode(body, CompletionBody)
        require_model(self, self.path, given.model, headers)
        scored = given.logprobs is not None
        parameters = given.sampling(echo=given.echo, logprobs=scored, top_logprobs=given.logprobs or 0)
        inputs, is_list = given.prompts()
        return self.request(given, inputs, parameters, is_list=is_list)

    def _whole(self, index: int, delta: ChoiceDelta) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": delta.text,
            "logprobs": _logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        return choice | {"prompt_logprobs": prompt_logprobs(delta)} if delta.prompt else choice

    def _chunks(self, index: int, delta: ChoiceDelta, *, is_first: bool) -> list[dict[str, Any]]:
        adds = delta.text or delta.tokens or delta.finish_reason
        return [self._whole(index, delta)] if adds else []


def _logprobs(delta: ChoiceDelta) -> dict[str, Sequence[Any]] | None:
    if not delta.tokens:
        return None
    return {
        "tokens": [token.text for token in delta.tokens],
        "token_logprobs": [token.logprob for token in delta.tokens],
        "top_logprobs": [dict(token.top) if token.logprob is not None else None for token in delta.tokens],
        "text_offset": [token.offset for token in delta.tokens],
    }
