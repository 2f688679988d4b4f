"""Demo: one real question per task, asked when a cluster is ready; the API's document has them as examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.ask import post

ARTICLE = (
    "The Suwon Hwaseong Fortress was built between 1794 and 1796 under King Jeongjo of the Joseon dynasty. Its wall is "
    "5.7 kilometres long and has four gates. The architect Jeong Yak-yong designed a crane that lifted stones of seven "
    "tonnes. The fortress became a UNESCO World Heritage Site in 1997."
)


@dataclass(frozen=True)
class Question:
    """`inputs` and `parameters` as the Hugging Face task API takes them."""

    inputs: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if isinstance(self.inputs, dict):
            return str(self.inputs["question"])
        return self.inputs if len(self.inputs) <= 80 else f"{self.inputs[:77]}..."


QUESTIONS = {
    "text-classification": Question("배우들의 연기가 훌륭하고 이야기가 정말 감동적이었어요."),
    "question-answering": Question({"question": "Who designed the crane?", "context": ARTICLE}),
    "token-classification": Question(
        "정조는 1789년 아버지의 무덤을 서울에서 수원으로 옮겼다.", {"aggregation_strategy": "simple"}
    ),
    "translation": Question("Where is the train station?"),
    "summarization": Question(ARTICLE, {"truncation": "longest_first", "generate_parameters": {"max_new_tokens": 64}}),
    "text-generation": Question("The capital of France is", {"max_new_tokens": 12, "do_sample": False}),
}


def answer(task: str, url: str) -> str:
    """What the task at `url` says to its question, in a few words; raises AskError."""
    question = QUESTIONS[task]
    return _in_words(task, post(url, {"inputs": question.inputs, "parameters": question.parameters}))


def _in_words(task: str, given: Any) -> str:
    if task == "text-classification":
        return f"{given[0][0]['label']} ({given[0][0]['score']:.2f})"
    if task == "question-answering":
        return f"{given['answer']} ({given['score']:.2f})"
    if task == "token-classification":
        return ", ".join(f"{one['word']} = {one['entity_group']}" for one in given) or "no entities"
    (text,) = [value for key, value in given[0].items() if key.endswith("_text")]
    return " ".join(text.split())
