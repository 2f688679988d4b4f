"""Reranking, of a text-classification model with one label that scores a query beside a text: a cross-encoder.

    POST /rerank      {"query", "texts": [...], "raw_scores", "return_text", "truncate"}    text-embeddings-inference's
    [{"index", "score", "text"?}, ...]                                                     best first
    POST /v1/rerank   {"query", "documents": [text | {"text", ...}, ...], "top_n", "return_documents", "rank_fields",
                       "model"}    Cohere's
    POST /v2/rerank   {"query", "documents": [text, ...], "top_n", "model"}    Cohere's ClientV2
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
from deployments.protocols.model_name import MAX_CHARACTERS, require_model
from deployments.protocols.protocol import JSON, Mounted, Operation, Protocol, Reply, TaskRequest, json_reply
from deployments.protocols.text_embeddings_inference import NAME, require_length
from pipelines.errors import InvalidInputError, Path
from pipelines.misfit import require
from pipelines.schema import Body, Text, convert, decode
from pipelines.tasks import TASKS
from pipelines.tasks.pipeline import EncoderPipeline, Pipeline
from pipelines.tasks.task import Task

MAX_FIELDS = 64
MAX_TOKENS = 1_000_000  # of a document
MAX_PRIORITY = 999  # that Cohere has
Texts = Annotated[list[Text], Meta(min_length=1, max_length=MAX_INPUTS)]
TopN = Annotated[int, Meta(ge=1, le=MAX_INPUTS)]
ModelName = Annotated[str, Meta(max_length=MAX_CHARACTERS)]
FieldName = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]
Document = Annotated[dict[FieldName, str], Meta(max_length=MAX_FIELDS)]


class RerankBody(Body, frozen=True):
    """A body of `/rerank`."""

    query: Text
    texts: Texts
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False
    truncation_direction: Literal["right", "Right"] = "right"


class CohereBody(Body, frozen=True):
    """A body of `/v1/rerank`. Of a document that is an object, `rank_fields` are read, one after the other."""

    query: Text
    documents: Annotated[list[Text | Document], Meta(min_length=1, max_length=MAX_INPUTS)]
    top_n: TopN | None = None
    return_documents: bool = False
    model: ModelName | None = None
    rank_fields: Annotated[list[FieldName], Meta(min_length=1, max_length=MAX_FIELDS)] | None = None
    max_chunks_per_doc: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None

    def __post_init__(self) -> None:
        chunks = self.max_chunks_per_doc
        allowed = "1: a document is cut to the model's length"
        require(chunks in (None, 1), ("max_chunks_per_doc",), chunks, allowed)

    def texts(self) -> list[str]:
        """What is read of each document."""
        names = self.rank_fields or ["text"]
        for index, one in enumerate(self.documents):
            lacking = next((name for name in names if not isinstance(one, str) and not one.get(name)), None)
            if lacking is not None:
                problem = f"has no text in {lacking}; allowed: a text, or an object with the fields {', '.join(names)}"
                raise InvalidInputError(problem, ("documents", index))
        return [one if isinstance(one, str) else "\n".join(one[name] for name in names) for one in self.documents]


class CohereBodyV2(Body, frozen=True):
    """A body of `/v2/rerank`."""

    query: Text
    documents: Texts
    top_n: TopN | None = None
    model: ModelName | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    priority: Annotated[int, Meta(ge=0, le=MAX_PRIORITY)] | None = None

    def __post_init__(self) -> None:
        allowed = "0; the header `priority: u=7` has a request run when no others wait"
        require(self.priority in (None, 0), ("priority",), self.priority, allowed)


@dataclass(frozen=True)
class RerankRequest(TaskRequest):
    """A pair for each text; `shown` are the texts where the answer repeats them."""

    truncate: bool = False
    top_n: int | None = None
    shown: Sequence[str | Mapping[str, str]] | None = None


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
        shown: Sequence[str | Mapping[str, str]] | None = None,
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
    version: ClassVar[str] = "1"

    def read(self, body: bytes, headers: Mapping[str, str]) -> RerankRequest:
        given: CohereBody = decode(body, CohereBody)
        require_model(self, "/v1/rerank", given.model, headers)
        shown = given.documents if given.return_documents else None
        return self._request(given.query, given.texts(), top_n=given.top_n, shown=shown)

    def write(self, request: RerankRequest, answers: Sequence[Any]) -> Reply:
        ranked, version = self._ranked(request, answers, "relevance_score"), {"version": self.version}
        return json_reply({"id": secrets.token_hex(16), "results": ranked, "meta": {"api_version": version}})

    def _shown(self, request: RerankRequest, index: int) -> dict[str, Any]:
        if request.shown is None:
            return {}
        document = request.shown[index]
        return {"document": {"text": document} if isinstance(document, str) else document}


class CohereRerankV2(CohereRerank):
    """`POST /v2/rerank`."""

    version: ClassVar[str] = "2"

    def read(self, body: bytes, headers: Mapping[str, str]) -> RerankRequest:
        given: CohereBodyV2 = decode(body, CohereBodyV2)
        require_model(self, "/v2/rerank", given.model, headers)
        tokens, most = given.max_tokens_per_doc, self.pipeline.tokenizer.settings.max_length
        allowed = f"at least {most}: a document is cut to the model's length"
        require(tokens is None or tokens >= most, ("max_tokens_per_doc",), tokens, allowed)
        return self._request(given.query, given.documents, top_n=given.top_n)


def mount(pipeline: Pipeline[Any, Any, Any, Any], platform: Platform | None) -> Mounted:
    if NAME not in TASKS[pipeline.task].protocols:
        return Mounted()
    cohere = {"/v1/rerank": CohereRerank(pipeline), "/v2/rerank": CohereRerankV2(pipeline)}
    return Mounted({"/rerank": Rerank(pipeline), **cohere})


def operations(task: Task, platform: Platform | None) -> list[Operation]:
    if NAME not in task.protocols:
        return []
    return [
        Operation(
            f"/{task.name}/rerank", "Texts by their score beside a query, where the model has one label", RerankBody
        ),
        Operation(f"/{task.name}/v1/rerank", "The same, as Cohere's clients ask", CohereBody),
        Operation(f"/{task.name}/v2/rerank", "The same, as clients of Cohere's second API ask", CohereBodyV2),
    ]
