"""OpenAI's API for text: what chat (chat.py) and completions (completions.py) share.

A parameter that cannot be honoured has the type of the values that change nothing, so that all others are refused by
name. Where the task has several models, the model's name is checked (model_name.py).
"""

import secrets
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from deployments.http.errors import Failure
from deployments.protocols.model_name import MAX_CHARACTERS
from deployments.protocols.openai.errors import failure_body
from deployments.protocols.openai.response_format import ResponseFormat
from deployments.protocols.protocol import Protocol, Reply, TaskRequest, json_reply
from pipelines.errors import InvalidInputError, Path
from pipelines.generation.decoding.guide import Constraint
from pipelines.misfit import require, unknown_key
from pipelines.schema import Body
from pipelines.tasks.completion import ChoiceDelta, CompletionParameters, CompletionPipeline, PromptToken, Sampling

DONE = b"[DONE]"
Label = Annotated[str, Meta(max_length=MAX_CHARACTERS)]
# Values that change nothing, of parameters that are not supported.
EmptyList = Annotated[list[Any], Meta(max_length=0)]
EmptyObject = Annotated[dict[str, Any], Meta(max_length=0)]


class StreamOptions(Body, frozen=True):
    """`include_usage` ends a stream with a chunk that counts tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False

    def __post_init__(self) -> None:
        require(not self.include_obfuscation, ("include_obfuscation",), True, "false")


class OpenAiBody(Sampling, frozen=True, kw_only=True):
    """What both bodies hold. `user`, `safety_identifier` and `prompt_cache_key` name the caller; nothing depends on
    them. What OpenAI does not have is vLLM's, which clients send in `extra_body`.
    """

    model: Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    metadata: EmptyObject | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool = False
    response_format: ResponseFormat | None = None

    def __post_init__(self) -> None:
        require(not self.store, ("store",), True, "false, as it is not supported")
        if self.stream_options not in (None, StreamOptions()) and not self.stream:
            raise InvalidInputError("is set; allowed: only with stream true", ("stream_options",))

    @classmethod
    def unknown(cls, names: Sequence[str], path: Path) -> InvalidInputError:
        return unknown_key(names[0], cls.__struct_fields__, path)

    def sampling(self, **others: Any) -> CompletionParameters:
        """The pipeline's parameters: those of the same name, and `others`."""
        own = {name: getattr(self, name) for name in Sampling.__struct_fields__}
        return CompletionParameters(**own | {"constraint": self.constraint} | others)

    @property
    def constraint(self) -> Constraint | None:
        """What `response_format` holds the answer to."""
        constraint = None if self.response_format is None else self.response_format.constraint
        return None if constraint is None else replace(constraint, path=("response_format", *constraint.path))


@dataclass(frozen=True)
class CompletionRequest(TaskRequest):
    """A request and what its answer repeats; `inputs` are prompts, or the messages of one."""

    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    include_usage: bool = False


def model_card(name: str) -> dict[str, Any]:
    """The entry of `/v1/models`."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "sextet"}


class OpenAi(Protocol):
    """Writes choices with their usage."""

    object: ClassVar[str]
    prefix: ClassVar[str]
    path: ClassVar[str]
    request_type: ClassVar[type[CompletionRequest]] = CompletionRequest

    def __init__(self, pipeline: CompletionPipeline) -> None:
        super().__init__(pipeline)
        self.model = pipeline.artifact.name

    def request(
        self, body: OpenAiBody, inputs: Sequence[Any], parameters: CompletionParameters, *, is_list: bool = False
    ) -> CompletionRequest:
        return self.request_type(
            inputs,
            parameters,
            is_list,
            body.stream,
            self.renamed["inputs"],
            model=body.model,
            id=self.prefix + secrets.token_hex(12),
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
        )

    def write(self, request: CompletionRequest, answers: Sequence[list[ChoiceDelta]]) -> Reply:
        choices = [delta for of_prompt in answers for delta in of_prompt]
        content = self._envelope(request, self.object)
        content["choices"] = [self._whole(index, delta) for index, delta in enumerate(choices)]
        content["usage"] = _usage([of_prompt[0] for of_prompt in answers], choices)
        return json_reply(content | self._of_prompt(choices[0]))

    async def stream(
        self, request: CompletionRequest, events: AsyncGenerator[tuple[int, ChoiceDelta], None]
    ) -> AsyncGenerator[Any, None]:
        """A chunk for every delta that adds something, the usage where it was asked for, and the end."""
        latest: dict[int, ChoiceDelta] = {}
        chunk = self._envelope(request, self.chunk_object)
        if request.include_usage:
            chunk["usage"] = None
        async with aclosing(events):
            async for index, delta in events:
                for choice in self._chunks(index, delta, is_first=index not in latest):
                    yield chunk | {"choices": [choice]}
                latest[index] = delta
        if request.include_usage:
            choices = request.parameters.choices
            firsts = range(0, len(request.inputs) * choices, choices)
            prompts = [latest[index] for index in firsts if index in latest]
            yield chunk | {"choices": [], "usage": _usage(prompts, list(latest.values()))}
        yield DONE

    def failure(self, failure: Failure) -> bytes:
        return failure_body(self._named(failure))

    @property
    def chunk_object(self) -> str:
        """The `object` of a chunk."""
        return self.object

    @abstractmethod
    def _whole(self, index: int, delta: ChoiceDelta) -> dict[str, Any]:
        """A finished choice."""

    @abstractmethod
    def _chunks(self, index: int, delta: ChoiceDelta, *, is_first: bool) -> list[dict[str, Any]]:
        """What a delta adds to a choice; nothing where it adds nothing."""

    def _of_prompt(self, delta: ChoiceDelta) -> dict[str, Any]:
        """What an answer says of its prompt beside its choices."""
        return {}

    def _envelope(self, request: CompletionRequest, kind: str) -> dict[str, Any]:
        return {
            "id": request.id,
            "object": kind,
            "created": request.created,
            "model": self.model,
            "system_fingerprint": None,
        }


def prompt_logprobs(delta: ChoiceDelta) -> list[dict[str, Any] | None] | None:
    """As vLLM: for each token an object by token ids, of the token itself and the most likely ones."""
    if not delta.prompt:
        return None
    return [None if one is None else _by_id(one) for one in delta.prompt]


def _by_id(one: PromptToken) -> dict[str, Any]:
    ranked = [*enumerate(one.top, start=1), (one.rank, one.token)]
    described = [
        (token, {"logprob": logprob, "rank": rank, "decoded_token": text}) for rank, (token, text, logprob) in ranked
    ]
    return {str(token): description for token, description in described}


def _usage(firsts: Sequence[ChoiceDelta], choices: Sequence[ChoiceDelta]) -> dict[str, Any]:
    """`firsts` are the first choices of each prompt, `choices` all of them."""
    prompt = sum(delta.prompt_tokens for delta in firsts)
    completion = sum(delta.completion_tokens for delta in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(delta.cached_tokens for delta in firsts)},
    }
