"""Scores against numbers worked out by hand."""

import math

import pytest

from export import scores


def test_accuracy_and_macro_f1_count_labels() -> None:
    predicted, expected = ["a", "a", "b", "b"], ["a", "b", "b", "b"]
    assert scores.accuracy(predicted, expected) == 0.75
    assert scores.macro_f1(predicted, expected) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_an_entity_is_right_only_with_its_type_and_both_ends() -> None:
    predicted = [{(0, 4, "PER"), (8, 12, "LOC")}, set()]
    expected = [{(0, 4, "PER"), (8, 13, "LOC")}, {(1, 2, "ORG")}]
    found = scores.set_f1(predicted, expected)
    assert found == {"precision": 0.5, "recall": pytest.approx(1 / 3), "f1": pytest.approx(0.4)}


def test_answers_are_compared_without_case_articles_and_punctuation() -> None:
    assert scores.answer_scores(["The Eiffel Tower!"], [["eiffel tower"]]) == {"exact_match": 1.0, "f1": 1.0}
    found = scores.answer_scores(["in Paris", ""], [["Paris", "France"], []])
    assert found == {"exact_match": 0.5, "f1": pytest.approx((2 / 3 + 1) / 2)}


def test_bleu_of_a_known_pair() -> None:
    # 6 of 7 words, 4 of 6 pairs, 2 of 5 triples, 1 of 4 quadruples; as long as the reference
    hypothesis, reference = "the cat sat on the mat .", "the cat is on the mat ."
    expected = (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25
    assert scores.bleu([hypothesis], [reference]) == pytest.approx(expected)
    assert scores.bleu([reference], [reference]) == 1.0
    assert scores.bleu(["a b c d e"], ["a b c d e f"]) == pytest.approx(math.exp(1 - 6 / 5))


def test_rouge_l_follows_the_order_of_words() -> None:
    assert scores.rouge_l(["police killed the gunman"], ["police kill the gunman"]) == pytest.approx(0.75)
    assert scores.rouge_l(["the gunman kill police"], ["police kill the gunman"]) == pytest.approx(0.5)
