"""A seventh task in one file, as another package brings it: which language a text is written in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.generation.decoding.request import Cancelled, never
from pipelines.runtime.padding import EncoderRow
from pipelines.tasks.activation import activate
from pipelines.tasks.encoder import EncoderPipeline
from pipelines.tasks.inputs import parse_text
from pipelines.tasks.parameters import Parameters, require
from pipelines.tasks.task import Example, Head, Task


@dataclass(frozen=True)
class LanguageIdentificationParameters(Parameters):
    """`least_score`: languages of a lower score are left out."""

    least_score: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.least_score <= 1, "least_score", self.least_score, "0 to 1")


class LanguageIdentificationPipeline(EncoderPipeline[str, LanguageIdentificationParameters, np.ndarray]):
    """An answer is a list of `{"language", "score"}`, best first."""

    task = "language-identification"
    parameters_type = LanguageIdentificationParameters

    def parse(self, raw: Any) -> str:
        return parse_text(raw)

    def preprocess(self, inputs: Sequence[str], parameters: LanguageIdentificationParameters) -> list[list[EncoderRow]]:
        encodings = self.tokenizer.encode(inputs, max_length=self.tokenizer.settings.max_length, offsets=False)
        return [[row] for row in self._encoder.rows(encodings)]

    def forward(self, rows: Sequence[EncoderRow], cancelled: Cancelled = never) -> list[np.ndarray]:
        """The logits of each row, (languages,) float32."""
        return list(self._encoder.run(rows)["logits"])

    def postprocess(
        self,
        given: str,
        rows: Sequence[EncoderRow],
        outputs: Sequence[np.ndarray],
        parameters: LanguageIdentificationParameters,
    ) -> list[dict[str, Any]]:
        (logits,) = outputs
        scores = activate(logits, "softmax").tolist()
        found = [
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
    title={"en": "Language identification", "ko": "언어 식별"},
    summary={"en": "Which language a text is written in.", "ko": "글이 어떤 언어로 쓰였는지 알려 줍니다."},
    examples=(Example("en", "Where is the train station?"), Example("ko", "도서관은 몇 시에 문을 여나요?")),
    columns=("text", "label"),
    in_words=lambda answer: f"{answer[0]['language']} ({answer[0]['score']:.2f})",
    labelled=True,
)
