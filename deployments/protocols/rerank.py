"""Reranking, of a text-classification model with one label that scores a query beside a text: a cross-encoder.

    POST /rerank      {"query", "texts": [...], "raw_scores", "return_text", "truncate"}    text-embeddings-inference's
    [{"index", "score", "text"?}, ...]                                                     best first
    POST /v1/rerank   {"query", "documents": [text | {"text"}, ...], "top_n", "return_documents", "model"}    Cohere's
    {"id", "results": [{"index", "relevance_score", "document"?}, ...], "meta"}

Scores are sigmoids of the logit, or with `raw_scores` the logit. As in text-embeddings-inference, a pair that is too
long is refused unless `truncate` is true; Cohere's clients expect that it is cut.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from deployments.cluster.platform import Platform
from deployments.config import MAX_INPUTS
from deployments.protocols.protocol import JSON, Mounted, Operation, Protocol, Reply, TaskRequest, json_reply
from deployments.protocols.text_embeddings_inference import NAME, require_length
from pipelines.errors import InvalidInputError, Path
from pipelines.schema import Body, Text, convert, decode
from pipelines.tasks import TASKS
from pipelines.tasks.pipeline import EncoderPipeline, Pipeline
from pipelines.tasks.task import Task

MAX_LABEL_CHARACTERS = 1024
Texts = Annotated[list[Text], Meta(min_length=1, max_length=MAX_INPUTS)]


class Document(Body, frozen=True):
    """A document of Cohere's."""

    text: Text


class RerankBody(Body, frozen=True):
    """A body of `/rerank`."""

    query: Text
    texts: Texts
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False
    truncation_direction: Literal["right", "Right"] = "right"


class CohereBody(Body, frozen=True):
    """A body of `/v1/rerank`; `model` is not looked at."""

    query: Text
    documents: Annotated[list[Text | Document], Meta(min_length=1, max_length=MAX_INPUTS)]
    top_n: Annotated[int, Meta(ge=1, le=MAX_INPUTS)] | None = None
    return_documents: bool = False
    model: Annotated[str, Meta(max_length=MAX_LABEL_CHARACTERS)] | None = None


@dataclass(frozen=True)
class RerankRequest(TaskRequest):
    """A pair for each text; `shown` are the texts where the answer repeats them."""

    truncate: bool = False
    top_n: int | None = None
    shown: Sequence[str] | None = None


class Rerank(Protocol):
    """`POST /rerank`."""

    pipeline: EncoderPipeline[Any, Any, Any]
    field: ClassVar[str] = "texts"

    def read(self, body: bytes, headers: Mapping[str, str]) -> RerankRequest:
        given: RerankBody = decode(body, RerankBody)
        shown = given.texts if given.return_text else None
        return self._request(given.query, given.texts, raw=given.raw_scores, truncate=given.truncate, shown=shown)

    def parse(self, request: RerankRequest) -> tuple[list[Any], Any]:
        """Raises InputTooLongError for the first pair that the model would not read to its end."""
        inputs, parameters = super().parse(request)
        if not request.truncate:
            require_length(self.pipeline, request, inputs)
        return inputs, parameters

    def write(self, request: RerankRequest, answers: Sequence[Any]) -> Reply:
        return json_reply(self._ranked(request, answers, "score"))

    def _ranked(self, request: RerankRequest, answers: Sequence[Any], score: str) -> list[dict[str, Any]]:
        """Index and score of each text, best first; of equal ones the first."""
        scored = [(index, labels[0]["score"]) for index, labels in enumerate(answers)]
        ranked = sorted(scored, key=lambda one: -one[1])[: request.top_n]
        return [{"index": index, score: value, **self._shown(request, index)} for index, value in ranked]

    def _shown(self, request: RerankRequest, index: int) -> dict[str, Any]:
        return {} if request.shown is None else {"text": request.shown[index]}

    def _request(
        self,
        query: str,
        texts: Sequence[str],
        *,
        raw: bool = False,
        truncate: bool = True,
        top_n: int | None = None,
        shown: Sequence[str] | None = None,
    ) -> RerankRequest:
        task, labels = TASKS[self.pipeline.task], self.pipeline.artifact.manifest.labels
        if len(labels) != 1:
            raise InvalidInputError(f"the model has {len(labels)} labels; allowed: one that has one, a cross-encoder")
        pairs = [convert({"text": query, "text_pair": text}, task.input_type) for text in texts]
        chosen = {"function_to_apply": "none" if raw else "sigmoid"}
        parameters = task.pipeline.parameters_type.from_mapping(chosen)
        place: Path = (self.field,)
        return RerankRequest(pairs, parameters, True, input_path=place, truncate=truncate, top_n=top_n, shown=shown)


class CohereRerank(Rerank):
    """`POST /v1/rerank`."""

    media_types = (JSON,)
    field: ClassVar[str] = "documents"

    def read(self, body: bytes, headers: Mapping[str, str]) -> RerankRequest:
        given: CohereBody = decode(body, CohereBody)
        texts = [one if isinstance(one, str) else one.text for one in given.documents]
        shown = texts if given.return_documents else None
        return self._request(given.query, texts, top_n=given.top_n, shown=shown)

    def write(self, request: RerankRequest, answers: Sequence[Any]) -> Reply:
        ranked = self._ranked(request, answers, "relevance_score")
        return json_reply({"id": secrets.token_hex(16), "results": ranked, "meta": {"api_version": {"version": "1"}}})

    def _shown(self, request: RerankRequest, index: int) -> dict[str, Any]:
        return {} if request.shown is None else {"document": {"text": request.shown[index]}}


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    if NAME not in TASKS[pipeline.task].protocols:
        return Mounted()
    return Mounted({"/rerank": Rerank(pipeline), "/v1/rerank": CohereRerank(pipeline)})


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    if NAME not in task.protocols:
        return []
    return [
        Operation(
            f"/{task.name}/rerank", "Texts by their score beside a query, where the model has one label", RerankBody
        ),
        Operation(f"/{task.name}/v1/rerank", "The same, as Cohere's clients ask", CohereBody),
    ]
