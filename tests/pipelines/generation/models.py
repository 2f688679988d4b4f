"""The tiny generators that several suites share, so that each is exported once."""

from typing import Any

from tests.tiny_checkpoints import DECODERS

WINDOW = 100
"""Every tiny model reads at least that many tokens."""

SLOTS = 4
"""Sequences that the tiny slot engines decode together."""

T5_TASKS = {
    "summarization": {
        "prefix": "summarize: ",
        "num_beams": 3,
        "max_length": 30,
        "min_length": 8,
        "length_penalty": 2.0,
    },
    "translation_en_to_de": {"prefix": "translate English to German: ", "max_length": 30, "num_beams": 2},
    "translation_en_to_fr": {"prefix": "translate English to French: ", "max_length": 18, "early_stopping": True},
}
_LENGTH = {"max_length": 24}  # 20 would mean "none said", as it is transformers' default


def task_of(architecture: str) -> str:
    return "text-generation" if architecture in DECODERS else "translation"


def changes_of(architecture: str) -> dict[str, Any]:
    """What the checkpoint says beside its architecture: an answer's length, and T5's tasks."""
    if architecture in DECODERS:
        return {}
    return _LENGTH | ({"task_specific_params": T5_TASKS} if architecture == "t5" else {})
