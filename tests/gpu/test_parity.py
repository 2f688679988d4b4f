"""The answers of every task and architecture on the device are those of transformers in fp32.

fp32 answers are equal. In fp16 a score may differ by SCORE, and a label or token may be another one only where the
reference finds both about equally good: labels within SCORE, tokens within LOGIT of the best.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from export.parity.samples import QUESTIONS, TEXTS
from tests.tiny_checkpoints import DECODERS, ENCODER_DECODERS, ENCODERS

Load = Callable[..., Any]

CHECKED = TEXTS[:12]
SCORE = {"fp32": 1e-3, "fp16": 0.03}
LOGIT = {"fp32": 1e-3, "fp16": 0.05}
WITHOUT_TIES = {"fp32": 1.0, "fp16": 0.6}  # the share of spans and generated answers that are the same ones
PROMPT_CHARACTERS = 60
NEW_TOKENS = 12
TAKEN = ("input_ids", "attention_mask", "forced_bos_token_id")  # of what the reference makes of a text


@pytest.mark.parametrize("architecture", ENCODERS)
def test_texts_have_the_scores_of_transformers(architecture: str, loaded_on: Load, oracle: Load) -> None:
    ours, reference = loaded_on(architecture, "text-classification"), oracle(architecture, "text-classification")
    within = SCORE[ours.artifact.manifest.precision]
    for text in CHECKED:
        theirs = {one["label"]: one["score"] for one in reference(text, top_k=None, truncation=True)}
        assert {one["label"]: one["score"] for one in ours(text, top_k=None)} == pytest.approx(theirs, abs=within)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_tokens_have_the_labels_of_transformers(architecture: str, loaded_on: Load, oracle: Load) -> None:
    ours, reference = loaded_on(architecture, "token-classification"), oracle(architecture, "token-classification")
    within = SCORE[ours.artifact.manifest.precision]
    for text in CHECKED:
        theirs = reference(text, ignore_labels=[])
        scores = token_scores(reference, text)  # (tokens, labels)
        found = ours(text, ignore_labels=[])
        assert [one["index"] for one in found] == [one["index"] for one in theirs]
        for one in found:
            label = reference.model.config.label2id[one["entity"]]
            expected = scores[one["index"]]
            assert one["score"] == pytest.approx(expected[label], abs=within)
            assert expected[label] >= expected.max() - within, f"{one} where {expected.max():.3f} is the best"


def token_scores(reference: Any, text: str) -> np.ndarray:
    """(tokens, labels) probabilities of the reference."""
    import torch

    with torch.no_grad():
        logits = reference.model(**reference.tokenizer(text, return_tensors="pt", truncation=True)).logits[0]
    probabilities: np.ndarray = logits.softmax(-1).numpy()
    return probabilities


@pytest.mark.parametrize("architecture", ["bert", "electra", "xlm-roberta"])
def test_questions_have_the_spans_of_transformers(architecture: str, loaded_on: Load, oracle: Load) -> None:
    ours, reference = loaded_on(architecture, "question-answering"), oracle(architecture, "question-answering")
    precision, same = ours.artifact.manifest.precision, 0
    for question, context in QUESTIONS:
        given = {"question": question, "context": context}
        theirs, best = reference(**given), ours(given)
        assert best["score"] == pytest.approx(theirs["score"], rel=SCORE[precision])
        same += {**best, "score": None} == {**theirs, "score": None}
    assert same >= WITHOUT_TIES[precision] * len(QUESTIONS)


@pytest.mark.parametrize("architecture", DECODERS)
def test_prompts_go_on_with_the_tokens_of_transformers(architecture: str, loaded_on: Load, oracle: Load) -> None:
    same_tokens(loaded_on(architecture, "text-generation"), oracle(architecture, "text-generation"), {})


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_translations_have_the_tokens_of_transformers(architecture: str, loaded_on: Load, oracle: Load) -> None:
    languages = {"src_lang": "en", "tgt_lang": "fr"} if architecture == "m2m_100" else {}
    same_tokens(loaded_on(architecture, "translation"), oracle(architecture, "translation"), languages, num_beams=1)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_summaries_have_the_tokens_of_transformers(architecture: str, loaded_on: Load, oracle: Load) -> None:
    same_tokens(loaded_on(architecture, "summarization"), oracle(architecture, "summarization"), {}, num_beams=1)


def same_tokens(ours: Any, reference: Any, languages: dict[str, str], **asked: Any) -> None:
    """Greedy answers begin with the same tokens, up to the first that the reference finds about as good as its own."""
    import torch

    within = LOGIT[ours.artifact.manifest.precision]
    asked |= {"do_sample": False, "max_new_tokens": NEW_TOKENS}
    parameters, ties = ours.parameters(asked | languages), 0
    for text in (one[:PROMPT_CHARACTERS] for one in CHECKED):
        ((row,),) = ours.preprocess([ours.parse(text)], parameters)
        (answer,) = ours.forward([row])
        tokens = list(answer.generations[0].token_ids)
        sources = reference.preprocess(text, **reference._preprocess_params | languages)
        inputs = {name: value for name, value in sources.items() if name in TAKEN}
        with torch.no_grad():
            expected = reference.model.generate(**inputs, **asked, output_scores=True, return_dict_in_generate=True)
        theirs = expected.sequences[0, -len(expected.scores) :].tolist()
        if (place := first_difference(tokens, theirs)) is not None:
            scores = expected.scores[place][0]
            assert scores[theirs[place]] - scores[tokens[place]] <= within, (text, tokens, theirs)
            ties += 1
    share = 1 - ties / len(CHECKED)
    assert share >= WITHOUT_TIES[ours.artifact.manifest.precision]


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """The first place at which both have a token and they differ; None for the same tokens."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return place
    assert len(ours) == len(theirs), (ours, theirs)
    return None
