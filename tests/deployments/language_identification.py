"""A seventh task in one file, as another package brings it: which language a text is written in."""

from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

import numpy as np
from msgspec import Meta

from pipelines.generation.decoding.request import Cancelled, not_cancelled
from pipelines.runtime.encoder import activate
from pipelines.runtime.rows import EncoderRow
from pipelines.schema import Parameters, Text, parse
from pipelines.tasks.pipeline import EncoderPipeline
from pipelines.tasks.task import Example, Head, Task


class Language(TypedDict):
    """A language and how surely it is that of the text."""

    language: str
    score: float


class LanguageIdentificationParameters(Parameters, frozen=True):
    """`least_score`: languages of a lower score are left out."""

    least_score: Annotated[float, Meta(ge=0, le=1)] = 0.0


class LanguageIdentificationPipeline(EncoderPipeline[str, LanguageIdentificationParameters, np.ndarray]):
    """An answer is a list of `{"language", "score"}`, best first."""

    task = "language-identification"
    parameters_type = LanguageIdentificationParameters

    def parse(self, raw: Any) -> str:
        text: str = parse(raw, Text)
        return text

    def preprocess(self, inputs: Sequence[str], parameters: LanguageIdentificationParameters) -> list[list[EncoderRow]]:
        encodings = self.tokenizer.encode(inputs, max_length=self.tokenizer.settings.max_length, offsets=False)
        return [[row] for row in self._encoder.rows(encodings)]

    def forward(self, rows: Sequence[EncoderRow], cancelled: Cancelled = not_cancelled) -> list[np.ndarray]:
        """The logits of each row, (languages,) float32."""
        return list(self._encoder.run(rows)["logits"])

    def postprocess(
        self,
        given: str,
        rows: Sequence[EncoderRow],
        outputs: Sequence[np.ndarray],
        parameters: LanguageIdentificationParameters,
    ) -> list[Language]:
        (logits,) = outputs
        scores = activate(logits, "softmax").tolist()
        found: list[Language] = [
            {"language": language, "score": score}
            for language, score in zip(self.artifact.manifest.labels, scores, strict=True)
            if score >= parameters.least_score
        ]
        return sorted(found, key=lambda one: -one["score"])


TASK = Task(
    name=LanguageIdentificationPipeline.task,
    pipeline=LanguageIdentificationPipeline,
    head=Head(
        auto_class="AutoModelForSequenceClassification",
        classes=("ForSequenceClassification",),
        peft_type="SEQ_CLS",
        modules=("pooler", "classifier"),
    ),
    input_type=Text,
    answer_type=list[Language],
    title={"en": "Language identification", "ko": "언어 식별"},
    summary={"en": "Which language a text is written in.", "ko": "글이 어떤 언어로 쓰였는지 알려 줍니다."},
    examples=(Example("en", "Where is the train station?"), Example("ko", "도서관은 몇 시에 문을 여나요?")),
    columns=("text", "label"),
    in_words=lambda answer: f"{answer[0]['language']} ({answer[0]['score']:.2f})",
    labelled=True,
)
