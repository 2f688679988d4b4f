"""Classifiers that read one token of each row: the last real one, whatever else is in the batch."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pipelines
from export.build import ExportArgs, export_checkpoint
from tests.known_models import CLASSIFY, KnownModel

DECODER = {"num_key_value_heads": 2}
HEADS = (
    KnownModel("facebook/bart-large-mnli", "bart", CLASSIFY, "bart"),
    KnownModel("someone/gpt2", "gpt2", CLASSIFY, "gpt2"),
    KnownModel("someone/llama", "llama", CLASSIFY, "llama", DECODER),
    KnownModel("someone/qwen2", "qwen2", CLASSIFY, "qwen2", DECODER),
    KnownModel("someone/qwen3", "qwen3", CLASSIFY, "qwen2", DECODER),
    KnownModel("someone/gemma", "gemma", CLASSIFY, "llama", DECODER),
)
TEXTS = (
    "No.",
    "The film was wonderful, and the ending made everyone cry.",
    {"text": "The river flows north.", "text_pair": "It flows."},
    "정말 재미있는 영화였어요.",
)


@pytest.mark.parametrize("known", HEADS, ids=lambda known: known.architecture)
def test_a_batch_of_texts_and_pairs_is_classified_as_each_of_them_alone(known: KnownModel, tmp_path: Path) -> None:
    source = known.write(tmp_path / "checkpoint")
    artifact = export_checkpoint(ExportArgs(str(source), CLASSIFY, tmp_path / "artifact"))
    assert artifact.manifest.parity.largest_difference <= 1e-4

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    answers = pipelines.load(tmp_path / "artifact")(list(TEXTS), top_k=None)

    for given, answer in zip(TEXTS, answers, strict=True):
        both = (given["text"], given["text_pair"]) if isinstance(given, dict) else (given,)
        with torch.no_grad():
            expected = model(**tokenizer(*both, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(
            {model.config.id2label[index]: score for index, score in enumerate(expected)}, abs=1e-4
        )


def test_a_classifier_that_reads_the_end_of_a_text_is_quantized(tmp_path: Path) -> None:
    """What looks for outliers reads texts that are cut, with their ends."""
    source = HEADS[0].write(tmp_path / "checkpoint")

    artifact = export_checkpoint(ExportArgs(str(source), CLASSIFY, tmp_path / "artifact", precision="int8"))

    assert artifact.manifest.precision == "int8"
