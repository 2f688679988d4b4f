"""Payloads: one request per task, the same body over HTTP and in-process."""

from dataclasses import dataclass, field
from typing import Any

ARTICLE = (
    "The James Webb Space Telescope was launched on 25 December 2021 from French Guiana. Its mirror is 6.5 metres wide "
    "and made of eighteen gold-plated segments that unfolded in space. It observes infrared light, which passes "
    "through dust and reaches us from the first galaxies. To keep its instruments cold, a sunshield the size of a "
    "tennis court separates them from the Sun, the Earth and the Moon. The first images were released in July 2022."
)


@dataclass(frozen=True)
class Payload:
    """`inputs` and `parameters` as the Hugging Face task API takes them."""

    inputs: Any
    parameters: dict[str, Any] = field(default_factory=dict)


PAYLOADS = {
    "text-classification": Payload("배우들의 연기가 훌륭하고 이야기가 감동적이었어요."),
    "question-answering": Payload({"question": "How wide is the mirror?", "context": ARTICLE}),
    "token-classification": Payload(
        "이순신 장군은 1592년 부산에서 일본 해군과 싸웠다.", {"aggregation_strategy": "simple"}
    ),
    "translation": Payload("Where is the train station?"),
    "summarization": Payload(ARTICLE, {"generate_parameters": {"max_new_tokens": 32, "do_sample": False}}),
    "text-generation": Payload("The capital of France is", {"max_new_tokens": 32, "do_sample": False}),
}
