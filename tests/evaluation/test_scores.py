"""Scores against the libraries that count them, and against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu import corpus_bleu, corpus_chrf
from seqeval.metrics import f1_score as entity_f1
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from transformers.data.metrics.squad_metrics import normalize_answer, squad_evaluate
from transformers.data.processors.squad import SquadExample

from evaluation import scores

LABELS = ("a", "b", "c")
label_pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=30)
sets = st.frozensets(st.sampled_from(LABELS))


@settings(deadline=None, max_examples=40)
@given(label_pairs)
def test_labels_are_counted_as_scikit_learn_counts_them(pairs: list[tuple[str, str]]) -> None:
    expected, predicted = zip(*pairs, strict=True)
    found = scores.classification(expected, predicted, LABELS)
    values = found.values()
    assert values["accuracy"] == pytest.approx(accuracy_score(expected, predicted))
    for average in ("macro", "micro"):
        for name, function in {"f1": f1_score, "precision": precision_score, "recall": recall_score}.items():
            theirs = function(expected, predicted, average=average, zero_division=0)
            assert values[f"{name}_{average}"] == pytest.approx(theirs)
    assert found.confusion is not None
    assert found.confusion.sum() == len(pairs)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(sets, sets), min_size=1, max_size=20))
def test_sets_of_labels_are_counted_as_scikit_learn_counts_them(pairs: list[tuple[set[str], set[str]]]) -> None:
    expected, predicted = ([sorted(one) for one in side] for side in zip(*pairs, strict=True))
    values = scores.multi_label(expected, predicted, LABELS).values()
    grids = [np.array([[name in one for name in LABELS] for one in side]) for side in (expected, predicted)]
    assert values["f1_macro"] == pytest.approx(f1_score(*grids, average="macro", zero_division=0))
    assert values["f1_micro"] == pytest.approx(f1_score(*grids, average="micro", zero_division=0))
    assert values["accuracy"] == pytest.approx(accuracy_score(*grids))


def test_an_entity_is_right_only_with_its_type_and_both_ends() -> None:
    texts = ["Anna is in Paris", "Seoul"]
    expected = [{(0, 4, "PER"), (11, 16, "LOC")}, {(0, 5, "LOC")}]
    predicted: list[set[scores.Span]] = [{(0, 4, "PER"), (11, 15, "LOC")}, set()]
    found = scores.entities(texts, expected, predicted)
    values = found.values()
    assert [values[name] for name in ("precision", "recall", "f1")] == pytest.approx([1 / 2, 1 / 3, 2 / 5])
    tags = [[scores._tags(len(t), s) for t, s in zip(texts, side, strict=True)] for side in (expected, predicted)]
    assert values["f1"] == pytest.approx(entity_f1(*tags, mode="strict", scheme=IOB2))
    assert found.table["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 2.0}


def test_answers_are_compared_without_case_articles_and_punctuation() -> None:
    assert scores.answers(["The Eiffel Tower!"], [["eiffel tower"]]).values() == {"exact_match": 100.0, "f1": 100.0}
    found = scores.answers(["in Paris", ""], [["Paris", "France"], []]).values()
    assert found == {
        "exact_match": 50.0,
        "f1": pytest.approx(100 * (2 / 3 + 1) / 2),
        "no_answer_accuracy": pytest.approx(100.0),
    }


words = st.lists(st.sampled_from(("the", "Eiffel", "Tower,", "a", "tower", "in", "Paris.", "$5")), max_size=5).map(
    " ".join
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(words, st.lists(words.filter(normalize_answer), max_size=3)), min_size=1, max_size=8))
def test_answers_are_scored_as_the_script_of_squad_scores_them(pairs: list[tuple[str, list[str]]]) -> None:
    predicted, accepted = zip(*pairs, strict=True)
    examples = [
        SquadExample(str(n), "", "", None, None, "", [{"text": one} for one in golds], not golds)
        for n, golds in enumerate(accepted)
    ]
    theirs = squad_evaluate(examples, {str(n): answer for n, answer in enumerate(predicted)})
    values = scores.answers(predicted, accepted).values()
    assert values["exact_match"] == pytest.approx(theirs["exact"])
    assert values["f1"] == pytest.approx(theirs["f1"])
    if "NoAns_exact" in theirs:
        assert values["no_answer_accuracy"] == pytest.approx(theirs["NoAns_exact"])


def test_scores_of_one_row_and_of_right_answers_only_have_no_width() -> None:
    for found in (
        scores.classification(["a"], ["b"], ("a", "b")),
        scores.classification(["a", "b"] * 9, ["a", "b"] * 9, ("a", "b")),
        scores.answers(["x"], [["y"]]),
        scores.answers(["x", ""], [["x"], []]),
        scores.translations(["it is a good day"] * 3, ["it is a good day"] * 3),
        scores.summaries(["word"], ["other"]),
        scores.perplexity([2.0, 0.0], [2, 0]),
        scores.regression([1.0], [2.0]),
        scores.entities(["Anna"], [{(0, 4, "PER")}], [{(0, 4, "PER")}]),
    ):
        values, draws = found.values(), found.draws(30)
        for name, value in values.items():
            assert scores.interval(draws[name]) == pytest.approx((value, value)), name


def test_translations_score_as_sacrebleu_scores_them() -> None:
    predicted = ["the cat sat on the mat .", "Il fait beau aujourd'hui.", "오늘 날씨가 좋다."]
    expected = ["the cat is on the mat .", "Il fait très beau aujourd'hui.", "오늘은 날씨가 좋다."]
    values = scores.translations(predicted, expected).values()
    assert values["bleu"] == pytest.approx(corpus_bleu(predicted, [expected]).score)
    assert values["chrf"] == pytest.approx(corpus_chrf(predicted, [expected]).score)
    assert values["exact_match"] == 0.0


def test_summaries_score_as_rouge_score_does_and_in_korean_too() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    predicted, expected = "police killed the gunman on Monday", "On Monday, police kill the gunman."
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(expected, predicted)
    values = scores.summaries([predicted], [expected]).values()
    assert values["rouge_1"] == pytest.approx(theirs["rouge1"].fmeasure)
    assert values["rouge_2"] == pytest.approx(theirs["rouge2"].fmeasure)
    assert values["rouge_l"] == pytest.approx(theirs["rougeL"].fmeasure)
    korean = scores.summaries(["한강이 흐른다", ""], ["서울에 한강이 흐른다", "비가 온다"]).values()
    assert korean["rouge_l"] == pytest.approx(0.8 / 2)
    assert korean["empty"] == 0.5


def test_regression_and_perplexity_by_hand() -> None:
    values = scores.regression([1.0, 2.0, 3.0], [1.0, 2.0, 5.0]).values()
    assert values["rmse"] == pytest.approx((4 / 3) ** 0.5)
    assert values["mae"] == pytest.approx(2 / 3)
    assert values["pearson"] == pytest.approx(np.corrcoef([1, 2, 3], [1, 2, 5])[0, 1])
    assert scores.perplexity([2.0, 4.0], [2, 1]).values()["perplexity"] == pytest.approx(np.exp(2.0))


def test_a_bootstrap_is_the_same_every_time_and_narrows_with_rows() -> None:
    def width(rows: int) -> float:
        right = ["a", "b"] * rows
        guessed = ["a", "b", "a", "a"] * (rows // 2)
        draws = scores.classification(right, guessed, ("a", "b")).draws(400)["accuracy"]
        low, high = scores.interval(draws)
        assert low < 0.75 < high
        return high - low

    assert width(20) == width(20)
    assert width(800) < width(20) / 3


def test_two_systems_that_answer_alike_differ_by_nothing() -> None:
    one = scores.answers(["a", "b", "c"], [["a"], ["x"], ["c"]])
    other = scores.answers(["A", "c", "the c"], [["a"], ["x"], ["c"]])
    assert (one.draws(50)["f1"] == other.draws(50)["f1"]).all()
