"""OpenAI's API for text: what chat (openai_chat.py) and completions (openai_completions.py) share.

A parameter that cannot be honoured is refused by name, unless it has the value that changes nothing. The model's name
is not checked: there is one, and clients that know no names send "dummy".
"""

import secrets
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from deployments.http.errors import Failure
from deployments.http.request import decode_json
from deployments.protocols.openai.errors import failure_body
from deployments.protocols.protocol import Protocol, Reply, TaskRequest, json_reply
from pipelines.errors import InvalidInputError
from pipelines.runtime.artifact import Manifest
from pipelines.schema import parse, shown
from pipelines.tasks.completion import CompletionPipeline, Piece

DONE = b"[DONE]"

SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
EXTRA = ("top_k", "min_p", "repetition_penalty")  # vLLM's, in `extra_body`
HONOURED = ("max_tokens", "n", "stop", *SAMPLING, *EXTRA)
LABELS = ("user", "safety_identifier", "prompt_cache_key")  # they name the caller; nothing depends on them
# name -> the values that change nothing, beside null
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
}


@dataclass(frozen=True)
class CompletionRequest(TaskRequest):
    """A request and what its answer repeats; `inputs` are prompts, of which each has `choices` answers."""

    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    choices: int = 1
    include_usage: bool = False


def model_card(manifest: Manifest) -> dict[str, Any]:
    """The entry of `/v1/models`."""
    return {"id": manifest.source.name, "object": "model", "created": 0, "owned_by": "sextet"}


class OpenAi(Protocol):
    """Reads a body key by key, and writes choices with their usage."""

    object: ClassVar[str]
    prefix: ClassVar[str]
    prompt_key: ClassVar[str]
    extra_keys: ClassVar[tuple[str, ...]]
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]]

    def __init__(self, pipeline: CompletionPipeline) -> None:
        super().__init__(pipeline)
        self.model = pipeline.artifact.manifest.source.name
        self._allowed = {"model", "stream", "stream_options", "logprobs", self.prompt_key, *HONOURED, *self.extra_keys}

    def read(self, body: bytes, headers: Mapping[str, str]) -> CompletionRequest:
        given = decode_json(body)
        if not isinstance(given, Mapping):
            raise InvalidInputError(f"the body is {shown(given)}; allowed: an object with model and {self.prompt_key}")
        given = {name: value for name, value in given.items() if value is not None}
        self._check(given)
        stream = _flag(given, "stream")
        options = given.get("stream_options", {})
        if not isinstance(options, Mapping) or set(options) - {"include_usage", "include_obfuscation"}:
            raise InvalidInputError(f"stream_options is {shown(options)}; allowed: an object with include_usage")
        if options and not stream:
            raise InvalidInputError("stream_options is set; allowed: only with stream true")
        if _flag(options, "include_obfuscation", "stream_options."):
            raise InvalidInputError("stream_options.include_obfuscation is true; allowed: false")
        parameters = {name: given[name] for name in HONOURED if name in given} | self._parameters(given)
        return CompletionRequest(
            inputs=self._inputs(given),
            parameters=parameters,
            stream=stream,
            id=self.prefix + secrets.token_hex(12),
            choices=parameters.get("n", 1),
            include_usage=_flag(options, "include_usage", "stream_options."),
        )

    def write(self, request: CompletionRequest, answers: Sequence[list[Piece]]) -> Reply:
        choices = [piece for of_prompt in answers for piece in of_prompt]
        return json_reply(
            self._envelope(request, self.object)
            | {
                "choices": [self._whole(index, piece) for index, piece in enumerate(choices)],
                "usage": _usage([of_prompt[0].prompt_tokens for of_prompt in answers], choices),
            }
        )

    async def stream(
        self, request: CompletionRequest, events: AsyncGenerator[tuple[int, Piece], None]
    ) -> AsyncGenerator[Any, None]:
        """A chunk for every piece that adds something, the usage where it was asked for, and the end."""
        latest: dict[int, Piece] = {}
        chunk = self._envelope(request, self.chunk_object)
        if request.include_usage:
            chunk["usage"] = None
        async with aclosing(events):
            async for index, piece in events:
                for choice in self._chunks(index, piece, is_first=index not in latest):
                    yield chunk | {"choices": [choice]}
                latest[index] = piece
        if request.include_usage:
            firsts = range(0, len(request.inputs) * request.choices, request.choices)
            prompts = [latest[index].prompt_tokens for index in firsts if index in latest]
            yield chunk | {"choices": [], "usage": _usage(prompts, list(latest.values()))}
        yield DONE

    def named(self, error: InvalidInputError, request: Any, index: int) -> InvalidInputError:
        message = str(error)
        if not message.startswith("inputs"):
            return error
        return type(error)(self.prompt_key + message.removeprefix("inputs"))

    def failure(self, failure: Failure) -> bytes:
        message = failure.error.removeprefix("parameters.")
        if message.startswith("inputs "):
            message = self.prompt_key + message.removeprefix("inputs")
        return failure_body(failure, message)

    @property
    def chunk_object(self) -> str:
        """The `object` of a chunk."""
        return self.object

    @abstractmethod
    def _inputs(self, given: Mapping[str, Any]) -> list[Any]:
        """The prompts, as the pipeline takes them."""

    @abstractmethod
    def _parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline's parameters that have another name, or another form, in this body."""

    @abstractmethod
    def _whole(self, index: int, piece: Piece) -> dict[str, Any]:
        """A finished choice."""

    @abstractmethod
    def _chunks(self, index: int, piece: Piece, *, is_first: bool) -> list[dict[str, Any]]:
        """What a piece adds to a choice; nothing where it adds nothing."""

    def _envelope(self, request: CompletionRequest, kind: str) -> dict[str, Any]:
        return {
            "id": request.id,
            "object": kind,
            "created": request.created,
            "model": self.model,
            "system_fingerprint": None,
        }

    def _check(self, given: Mapping[str, Any]) -> None:
        if "model" in given and not (isinstance(given["model"], str) and given["model"]):
            raise InvalidInputError(f"model is {shown(given['model'])}; allowed: the name of a model")
        neutral = {**NEUTRAL, **self.neutral}
        for name, value in given.items():
            if name in neutral:
                if value not in neutral[name]:
                    allowed = " or ".join(orjson.dumps(one).decode() for one in (None, *neutral[name]))
                    raise InvalidInputError(f"{name} is {shown(value)}; allowed, as it is not supported: {allowed}")
            elif name in LABELS:
                parse(value, str, (name,))
            elif name not in self._allowed:
                allowed = ", ".join(sorted(self._allowed))
                raise InvalidInputError(f"{shown(name)[1:-1]} is not a parameter here; allowed: {allowed}")


def _flag(given: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidInputError(f"{where}{name} is {shown(value)}; allowed: true or false")
    return bool(value)


def _usage(prompt_tokens: Sequence[int], choices: Sequence[Piece]) -> dict[str, int]:
    prompt, completion = sum(prompt_tokens), sum(piece.completion_tokens for piece in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
