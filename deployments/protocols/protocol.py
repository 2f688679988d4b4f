"""Protocol: how one dialect of HTTP says what is asked of a pipeline, and what it answered. No Ray, no sockets.

    bytes ──read──> TaskRequest ──check──> TaskRequest ──parse──> inputs, parameters ──(the pipeline)──> answers
    answers ──write──> Reply                             events ──stream──> payloads of server-sent events

`read` is cheap: it decodes and types a body, and runs neither tokenizer nor template. `check` holds the request against
the limits. What costs more comes in `parse`, after it. An error carries a path; `failure` words it with the names that
the client sent.

A module of this package that serves a protocol has two functions: `mount(pipeline, platform)`, what a pipeline answers
below its task's prefix, and `operations(task, platform)`, the same as OpenAPI describes it; `platform` is None outside
a container for one. Routes and the document find them:

    POST /                             the Hugging Face task API
    POST /v2/models/{task}/infer       the Open Inference Protocol; GET /v2... describes the model
    POST /predict                      text-embeddings-inference's, of tasks that name it
    POST /v1/chat/completions ...      OpenAI's, of tasks that name it; GET /v1/models names the model
    POST, GET                          the predict route and the health route of the platform
"""

import asyncio
import pkgutil
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar
from typing import Protocol as Interface

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deployments import protocols
from deployments.cluster.platform import Platform
from deployments.config import LimitsConfig
from deployments.http.errors import BodyTooLargeError, Failure, RouteNotFoundError
from deployments.http.request import MODEL_HEADER, OTHERS_HEADER, Route
from pipelines.errors import InputTooLongError, InvalidInputError, Path
from pipelines.misfit import shown
from pipelines.runtime.artifact import AdapterFacts
from pipelines.schema import encode
from pipelines.tasks.pipeline import Pipeline
from pipelines.tasks.task import Task

JSON = "application/json"
READING = "GET, HEAD"
SLICE_INPUTS = 64  # inputs that are tokenized at once: what they need in between is freed before the next ones
_CHUNK = 1024  # characters that are normalized at once: a count stops soon after its limit


@dataclass(frozen=True)
class TaskRequest:
    """What a body asks for: `inputs` are of the task's input type, `parameters` of the pipeline's parameters type.

    `is_list` tells an input by itself from a list of one. `input_path` is where the inputs stand in the body. `model`
    is the name in the body, of protocols that have one.
    """

    inputs: Sequence[Any]
    parameters: Any
    is_list: bool = False
    stream: bool = False
    input_path: Path = ("inputs",)
    model: str | None = None

    def place(self, index: int, *fields: str | int) -> Path:
        """Where an input, or a part of it, stands in the body."""
        return (*self.input_path, *((index,) if self.is_list else ()), *fields)

    def texts(self, given: Any) -> Iterator[str]:
        """The texts of one input that a tokenizer will read."""
        return texts_of(given)

    def check(self, limits: LimitsConfig) -> None:
        """Raise BodyTooLargeError (413) or InputTooLongError (422), before anything is tokenized.

        Characters are counted as tokenizers see them, after NFKC, which makes up to 18 of one.
        """
        count = len(self.inputs)
        if count > limits.max_inputs:
            allowed = f"at most {limits.max_inputs} inputs"
            raise BodyTooLargeError(f"has {count} elements; allowed: {allowed}", self.input_path)
        rows = count * self.parameters.choices
        if rows > limits.max_rows:
            raise BodyTooLargeError(
                f"has {count} elements of {self.parameters.choices} sequences each; allowed: at most {limits.max_rows} "
                "sequences in all",
                self.input_path,
            )
        in_all = 0
        for index, given in enumerate(self.inputs):
            most = min(limits.max_input_characters, limits.max_request_characters - in_all)
            length = 0
            for text in self.texts(given):
                length += characters(text, most - length)
                if length > most:
                    self._refuse(index, length, limits)
            in_all += length

    def _refuse(self, index: int, length: int, limits: LimitsConfig) -> None:
        most = limits.max_input_characters
        if length > most:
            raw = sum(map(len, self.texts(self.inputs[index])))
            counted = f"{raw} characters" if raw > most else f"more than {most} characters after NFKC"
            raise InputTooLongError(f"has {counted}; allowed: at most {most}", self.place(index))
        allowed = f"at most {limits.max_request_characters} in one request"
        raise BodyTooLargeError(f"has more characters in all; allowed: {allowed}", self.input_path)


@dataclass(frozen=True)
class Reply:
    """The body of an answer."""

    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        return Response(self.body, headers=self.headers or None, media_type=self.media_type)


class Protocol(ABC):
    """One dialect, at one path, over one `pipeline`: the task's own, or another view of the same model."""

    media_types: tuple[str, ...] = (JSON,)
    """What a body may be declared as."""

    renamed: ClassVar[Mapping[str, Path]] = {}
    """What a pipeline calls `inputs` and `parameters`, where the client calls it otherwise."""

    def __init__(self, pipeline: Pipeline[Any, Any, Any, Any]) -> None:
        self.pipeline = pipeline
        self.adapted: Mapping[str, Protocol] = {}
        """The same protocol of each adapter beside the model, by name: it answers requests that name it."""

    @abstractmethod
    def read(self, body: bytes, headers: Mapping[str, str]) -> TaskRequest:
        """Raises InvalidInputError that says where and what is allowed."""

    def parse(self, request: Any) -> tuple[list[Any], Any]:
        """The pipeline's inputs and parameters of a request that passed its check."""
        inputs = []
        for index, given in enumerate(request.inputs):
            try:
                inputs.append(self.pipeline.parse(given))
            except InvalidInputError as error:
                raise error.at(request.place(index, *(error.path or ())[1:])) from None
        return inputs, request.parameters

    def rows(self, inputs: Sequence[Any], parameters: Any, limits: LimitsConfig) -> list[list[Any]]:
        """The rows of all inputs; raises InputTooLongError as soon as they have more tokens than a request may have."""
        rows: list[list[Any]] = []
        n_rows = n_tokens = 0
        for start in range(0, len(inputs), SLICE_INPUTS):
            some = self.pipeline.preprocess(inputs[start : start + SLICE_INPUTS], parameters)
            rows += some
            n_rows += sum(map(len, some))
            n_tokens += sum(row.n_tokens + row.max_new_tokens for of_input in some for row in of_input)
            if n_rows > limits.max_rows:
                raise InputTooLongError(f"the request has {n_rows} rows or more; allowed: at most {limits.max_rows}")
            if n_tokens > limits.max_tokens:
                raise InputTooLongError(
                    f"the request may read and write {n_tokens} tokens or more; allowed: at most {limits.max_tokens}"
                )
        return rows

    @abstractmethod
    def write(self, request: Any, answers: Sequence[Any]) -> Reply:
        """The answers to all inputs of a request that `read` returned, in order."""

    async def stream(self, request: Any, events: AsyncGenerator[tuple[int, Any], None]) -> AsyncGenerator[Any, None]:
        """The payloads of a stream, JSON or bytes, from events that come with the number of their row."""
        async with aclosing(events):
            async for _, event in events:
                yield event

    def failure(self, failure: Failure) -> bytes:
        """The JSON that tells a client about a failure, as a body or as the last event of a stream."""
        return self._named(failure).body()

    def _named(self, failure: Failure) -> Failure:
        """The failure, whose place is that of the client's body."""
        cause = failure.cause
        if cause is None or not cause.path or cause.path[0] not in self.renamed:
            return failure
        head, *rest = cause.path
        cause = cause.at((*self.renamed[str(head)], *rest))
        return replace(failure, error=str(cause), cause=cause)


class Server(Interface):
    """What answers requests one by one: a TaskServer."""

    ending: asyncio.Event
    """Set when it takes no more than what is inside."""

    def __call__(self, request: Request, /) -> Awaitable[Response]: ...


Conversation = Callable[[Request, Server, LimitsConfig], Response]
"""Answers a POST that brings one request after the other, each of which it gives to the server."""


@dataclass(frozen=True)
class Mounted:
    """What one protocol answers: POSTs by path, pages of JSON that only a new model changes, and conversations.

    `errors` words failures at any other path below `prefix`. Who asks a path that does not exist is told of these,
    unless only the ingress asks them (`listed` is false).
    """

    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    pages: Mapping[str, Any] = field(default_factory=dict)
    conversations: Mapping[str, Conversation] = field(default_factory=dict)
    prefix: str | None = None
    errors: Protocol | None = None
    listed: bool = True


@dataclass(frozen=True)
class Operation:
    """A path as OpenAPI describes it, with its parameters in braces; a GET where there is no body.

    `answers` are the types that an answer may have; none where another specification describes it.
    """

    path: str
    summary: str
    body: Any = None
    answers: tuple[Any, ...] = ()
    example: Any = None
    streams: bool = False


@dataclass(frozen=True)
class Endpoint:
    """What there is at a path: a protocol for POSTs, a page for GETs, or a conversation; and the protocol that words
    its failures.
    """

    route: Route
    protocol: Protocol | None
    page: Any
    errors: Protocol
    others: Sequence[str]
    conversation: Conversation | None
    adapter: AdapterFacts | None = None
    """That which answers."""
    unknown: str = ""
    """What is wrong with the name of a model in a header."""
    adapters: Sequence[str] = ()
    """The names of those beside the model."""

    def require(self, headers: Mapping[str, str]) -> None:
        """Raise RouteNotFoundError where there is nothing, MethodNotAllowedError for a method that has no answer."""
        if self.unknown:
            raise RouteNotFoundError(self.unknown)
        if self.protocol is None and self.page is None and self.conversation is None:
            models = [
                *headers.get(OTHERS_HEADER, "").split(),
                *self.adapters,
            ]  # the path may name another
            listed = f"models: {', '.join((self.errors.pipeline.task, *models))}; " if models else ""
            raise RouteNotFoundError(f"{self.route.url_path} does not exist; {listed}allowed: {', '.join(self.others)}")
        self.route.require_method("POST" if self.page is None else READING)

    def reply(self, request: Request, server: Server, limits: LimitsConfig) -> Response:
        """The answer of what is no protocol."""
        if self.conversation is not None:
            return self.conversation(request, server, limits)
        return json_reply(self.page).response()


class Routes:
    """The routes of one pipeline; those of its adapters begin with their names, or a header has the name."""

    def __init__(self, pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None = None) -> None:
        artifact, self.adapter = pipeline.artifact, pipeline.artifact.adapter
        self._names = (artifact.name, pipeline.task)
        self._adapters = {name: Routes(one) for name, one in pipeline.adapted().items()}
        self._mounted: list[Mounted] = [module.mount(pipeline, platform) for module in modules()]
        self.protocols = {path: one for mounted in self._mounted for path, one in mounted.protocols.items()}
        self.pages = {path: page for mounted in self._mounted for path, page in mounted.pages.items()}
        self._conversations = {path: one for mounted in self._mounted for path, one in mounted.conversations.items()}
        public = [path for mounted in self._mounted if mounted.listed for path in mounted.protocols]
        below = pipeline.task if artifact.adapter is None else f"{pipeline.task}/{artifact.name}"
        posts = [f"POST /{below}{path.rstrip('/')}" for path in public]
        self._listed = [*posts, *(f"GET /{below}{path}" for path in self.pages)]
        for path, one in self.protocols.items() if self._adapters else ():
            same = {name: routes.protocols.get(path) for name, routes in self._adapters.items()}
            one.adapted = {name: protocol for name, protocol in same.items() if protocol is not None}

    def find(self, request: Request) -> Endpoint:
        """The endpoint of a request, once for all that is asked of it; it may be that of a path without one."""
        route = Route.of(request)
        return self._adapted(route, request) if self._adapters else self._at(route)

    def _adapted(self, route: Route, request: Request) -> Endpoint:
        """That of the adapter that a path or a header names, else the model's own."""
        name, _, below = route.path[1:].partition("/")
        if name in self._adapters:
            route = replace(route, path=f"/{below}")
        elif route.path.startswith("/v2/models/"):
            name = route.path.split("/")[3]
        elif (name := request.headers.get(MODEL_HEADER, "")) and name not in (*self._names, *self._adapters):
            allowed = ", ".join((*self._names, *self._adapters))
            return replace(self._at(route), unknown=f"there is no model {shown(name)}; allowed: {allowed}")
        routes = self._adapters.get(name)
        return self._at(route) if routes is None else replace(routes._at(route), adapter=routes.adapter)

    def _at(self, route: Route) -> Endpoint:
        protocol = self.protocols.get(route.path)
        errors = protocol or self._errors_at(route.path)
        page, conversation = self.pages.get(route.path), self._conversations.get(route.path)
        return Endpoint(route, protocol, page, errors, self._listed, conversation, adapters=tuple(self._adapters))

    def _errors_at(self, path: str) -> Protocol:
        for mounted in self._mounted:
            if mounted.prefix is not None and mounted.errors is not None and path.startswith(mounted.prefix):
                return mounted.errors
        return self.protocols["/"]


@cache
def modules() -> tuple[ModuleType, ...]:
    """The modules of this package that serve a protocol."""
    names = sorted(module.name for module in pkgutil.iter_modules(protocols.__path__))
    found = [import_module(f"{protocols.__name__}.{name}") for name in names]
    return tuple(module for module in found if hasattr(module, "mount"))


def class_name(task: Task, suffix: str) -> str:
    """What a class that is made for a task is called in the API's document."""
    return "".join(word.capitalize() for word in task.name.split("-")) + suffix


def texts_of(value: Any) -> Iterator[str]:
    """The texts of a typed input, whatever its type."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from texts_of(getattr(value, name))
    elif isinstance(value, list | tuple) and not (value and isinstance(value[0], int)):
        for one in value:
            yield from texts_of(one)


def characters(text: str, most: int) -> int:
    """The characters of `text`, before or after NFKC, whichever are more; stops counting once above `most`.

    Most tokenizers normalize first, and one character may become 18 (U+FDFA).
    """
    length = len(text)
    if length > most or text.isascii() or unicodedata.is_normalized("NFKC", text):
        return length
    normalized = 0
    for start in range(0, length, _CHUNK):
        normalized += len(unicodedata.normalize("NFKC", text[start : start + _CHUNK]))
        if normalized > most:
            break
    return max(length, normalized)


def json_reply(content: Any) -> Reply:
    return Reply(encode(content))
