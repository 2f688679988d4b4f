"""Text classification: labels with scores for a text, or for a pair of texts."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from msgspec import Meta

from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.encoder import Activation, activate
from pipelines.runtime.rows import EncoderRow
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import TextOrPair
from pipelines.schema import Body, Parameters, Text, parse
from pipelines.tasks.pipeline import EncoderPipeline
from pipelines.tasks.task import Example, Head, Task

MAX_LABELS = 10_000


class TextClassificationParameters(Parameters, frozen=True):
    """`function_to_apply` None: what the model was trained with. `top_k` None: all labels."""

    function_to_apply: Activation | None = None
    top_k: Annotated[int, Meta(ge=1, le=MAX_LABELS)] | None = None


class TextPair(Body, frozen=True):
    """Two texts that are read together; an empty second one counts as none."""

    text: str
    text_pair: str | None = None


class Label(TypedDict):
    """One label and its score."""

    label: str
    score: float


class LabelLogits(NamedTuple):
    """The output of one row: its logits, (labels,) float32, and the scores by the activation of the training.

    A worker thread computes the scores of a whole batch at once.
    """

    logits: np.ndarray
    scores: list[float]


class TextClassificationPipeline(EncoderPipeline[TextOrPair, TextClassificationParameters, LabelLogits]):
    """Over-long inputs are cut to the model's length; of a pair, the longer text first.

    An answer is a list of `{"label", "score"}`, best first, of all labels unless `top_k` bounds it. That is the shape
    over HTTP. A call from Python answers as `transformers.pipeline` does, whose shape depends on whether `top_k` was
    given: `pipe(text)` is a list of the best label, `pipe([text])` one flat list of each text's best label, and
    `pipe({"text": ..., "text_pair": ...})` the best label by itself; with `top_k` (None for all) each input has a list.
    """

    task = "text-classification"
    parameters_type = TextClassificationParameters

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        super().__init__(artifact, config)
        self._labels = artifact.manifest.labels
        self._activation = _trained_activation(artifact.manifest.problem_type, len(self._labels))

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        if "top_k" in parameters:
            return super().__call__(inputs, **parameters)
        answer = super().__call__(inputs, top_k=1, **parameters)
        if isinstance(inputs, list):
            return [best for (best,) in answer]
        return answer if isinstance(inputs, str) else answer[0]

    def parse(self, raw: Any) -> TextOrPair:
        """A text, or `{"text", "text_pair"}`; an empty second text counts as none."""
        given: str | TextPair = parse(raw, str | TextPair)
        if isinstance(given, str):
            return given
        return (given.text, given.text_pair) if given.text_pair else given.text

    def preprocess(
        self, inputs: Sequence[TextOrPair], parameters: TextClassificationParameters
    ) -> list[list[EncoderRow]]:
        tokenizer = self._encoder.tokenizer
        encodings = tokenizer.encode(inputs, max_length=tokenizer.settings.max_length, offsets=False)
        return [[row] for row in self._encoder.rows(encodings)]

    def forward(self, rows: Sequence[EncoderRow]) -> list[LabelLogits]:
        logits = self._encoder.run(rows)["logits"]  # (rows, labels)
        scores = activate(logits, self._activation).tolist()
        return [LabelLogits(*one) for one in zip(logits, scores, strict=True)]

    def postprocess(
        self,
        given: TextOrPair,
        rows: Sequence[EncoderRow],
        outputs: Sequence[LabelLogits],
        parameters: TextClassificationParameters,
    ) -> list[Label]:
        (output,) = outputs
        scores, wanted = output.scores, parameters.function_to_apply
        if wanted is not None and wanted != self._activation:
            scores = activate(output.logits, wanted).tolist()
        ranked = sorted(zip(self._labels, scores, strict=True), key=itemgetter(1), reverse=True)
        return [{"label": label, "score": score} for label, score in ranked[: parameters.top_k]]


def _trained_activation(problem_type: str | None, n_labels: int) -> Activation:
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or n_labels == 1 else "softmax"


TASK = Task(
    name=TextClassificationPipeline.task,
    pipeline=TextClassificationPipeline,
    head=Head(
        auto_class="AutoModelForSequenceClassification",
        classes=("ForSequenceClassification",),
        peft_type="SEQ_CLS",
        modules=("pooler", "classifier", "score", "pre_classifier"),
    ),
    title={"en": "Text classification", "ko": "텍스트 분류"},
    summary={
        "en": "Which label fits a text, and how surely.",
        "ko": "글에 맞는 레이블과 그 확신도를 알려 줍니다.",
    },
    examples=(
        Example("ko", "배우들의 연기가 훌륭하고 이야기가 정말 감동적이었어요."),
        Example("en", "The plot was thin and the ending made no sense."),
    ),
    input_type=Text | TextPair,
    answer_type=list[Label],
    columns=("text", "label"),
    optional_columns=("text_pair",),
    in_words=lambda answer: f"{answer[0][0]['label']} ({answer[0][0]['score']:.2f})",
    labelled=True,
    wraps_answer=True,
    protocols=("text-embeddings-inference",),
    root_paths=("/predict", "/rerank", "/v1/rerank", "/v2/rerank"),  # TEI's clients, and Cohere's
    client="text_classification",
    form=("top_k", "function_to_apply"),
)
