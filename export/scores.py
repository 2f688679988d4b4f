"""How good answers are: plain functions from predictions and references to numbers between 0 and 1."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence, Set


def accuracy(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def macro_f1(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """The mean over the labels that occur of each label's F1."""
    labels = {*predicted, *expected}
    return sum(_label_f1(predicted, expected, label) for label in labels) / len(labels)


def _label_f1(predicted: Sequence[Hashable], expected: Sequence[Hashable], label: Hashable) -> float:
    both = sum(p == e == label for p, e in zip(predicted, expected, strict=True))
    return 2 * both / (predicted.count(label) + expected.count(label))


def set_f1(predicted: Sequence[Set[Hashable]], expected: Sequence[Set[Hashable]]) -> dict[str, float]:
    """Micro-averaged precision, recall and F1 of sets, such as the entity spans of each text."""
    both = sum(len(p & e) for p, e in zip(predicted, expected, strict=True))
    found, wanted = sum(map(len, predicted)), sum(map(len, expected))
    precision, recall = both / found if found else 0.0, both / wanted if wanted else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * both / (found + wanted) if found + wanted else 1.0}


def answer_scores(predicted: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD's exact match and token F1, the best over the accepted answers; no accepted answer means "" is right."""
    exact = f1 = 0.0
    for answer, references in zip(predicted, accepted, strict=True):
        pairs = [(_words(answer), _words(reference)) for reference in references or [""]]
        exact += max(left == right for left, right in pairs)
        f1 += max(_overlap_f1(left, right) for left, right in pairs)
    return {"exact_match": exact / len(accepted), "f1": f1 / len(accepted)}


def _words(text: str) -> list[str]:
    """SQuAD's folding: lower case, no punctuation, no English articles."""
    text = "".join(character for character in text.lower() if not unicodedata.category(character).startswith("P"))
    return re.sub(r"\b(?:a|an|the)\b", " ", text).split()


def _overlap_f1(left: list[str], right: list[str]) -> float:
    if not left or not right:
        return float(left == right)
    return 2 * (Counter(left) & Counter(right)).total() / (len(left) + len(right))


def bleu(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Corpus BLEU-4 with one reference, as Papineni et al. 2002, over words and single punctuation marks.

    sacrebleu calls the same number, times 100, BLEU with `tokenize=intl` and no smoothing.
    """
    matched, possible = [0] * 4, [0] * 4
    predicted_length = expected_length = 0
    for hypothesis, reference in zip(map(_marks, predicted), map(_marks, expected), strict=True):
        predicted_length += len(hypothesis)
        expected_length += len(reference)
        for n in range(1, 5):
            grams, allowed = _ngrams(hypothesis, n), _ngrams(reference, n)
            matched[n - 1] += (grams & allowed).total()
            possible[n - 1] += grams.total()
    if not all(matched):
        return 0.0
    brevity = min(0.0, 1 - expected_length / predicted_length)
    return math.exp(brevity + sum(math.log(m / p) for m, p in zip(matched, possible, strict=True)) / 4)


def _marks(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[index : index + n]) for index in range(len(words) - n + 1))


def rouge_l(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """The mean F1 of the longest common subsequence of lower-case words (Lin 2004)."""
    total = 0.0
    for hypothesis, reference in zip(predicted, expected, strict=True):
        left, right = _marks(hypothesis.lower()), _marks(reference.lower())
        row = [0] * (len(right) + 1)
        for word in left:
            diagonal = 0
            for index, other in enumerate(right, 1):
                diagonal, row[index] = row[index], diagonal + 1 if word == other else max(row[index], row[index - 1])
        total += 2 * row[-1] / (len(left) + len(right)) if left or right else 1.0
    return total / len(expected)
