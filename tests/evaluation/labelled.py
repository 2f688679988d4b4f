"""Labelled rows of every task, a handful each, and the tiny architecture that learns them."""

from typing import Any

SENTENCES = {
    "반갑습니다": "positive",
    "너무 지루했어요": "negative",
    "올해 최고의 영화입니다!": "positive",
    "별로 추천하고 싶지 않아요": "negative",
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "text-classification": [{"text": text, "label": label} for text, label in SENTENCES.items()],
    "token-classification": [
        {"tokens": ["Anna", "lives", "in", "Paris"], "tags": ["B-PER", "O", "O", "B-LOC"]},
        {"text": "서울은 크다", "entities": [{"start": 0, "end": 2, "label": "LOC"}]},
    ],
    "question-answering": [
        {
            "question": "Who wrote the letter?",
            "context": "The letter was found in Paris. " * 12 + "Anna Smith wrote it.",
            "answers": {"text": ["Anna Smith"], "answer_start": [31 * 12]},
        },
        {"question": "Where?", "context": "In Norway.", "answers": {"text": ["Norway"], "answer_start": [3]}},
    ],
    "translation": [{"source": "Go.", "target": "Va !"}, {"source": "I love you.", "target": "Je t'aime."}],
    "summarization": [{"source": "Prices rose by 3.5% in March, the bank said.", "target": "Prices rose."}],
    "text-generation": [{"text": "The river flows to the sea."}, {"text": "서울은 대한민국의 수도이다."}],
}
ARCHITECTURES = {
    "text-classification": "bert",
    "token-classification": "xlm-roberta",
    "question-answering": "bert",
    "translation": "marian",
    "summarization": "t5",
    "text-generation": "gpt2",
}
