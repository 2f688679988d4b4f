"""Scores of answers, with 95% bootstrap intervals.

Every score is computed from statistics that add up over rows (true positives, matching n-grams, correct answers). The
bootstrap draws rows with replacement and adds up again. Two systems on the same rows use the same draws, so their
difference has a paired interval. scikit-learn, seqeval, sacrebleu and rouge-score count, as papers cite them; SQuAD's
normalization of answers is here, because its script is no library.

Accuracy, precision, recall, F1 and ROUGE are between 0 and 1; SQuAD's exact match and F1, BLEU and chrF are between 0
and 100, as their authors have them.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.args import RESAMPLES

Sums = np.ndarray
Values = dict[str, float]
LOWER_IS_BETTER = ("perplexity", "rmse", "mae", "loss")


@dataclass(frozen=True)
class Scored:
    """`statistics` (rows, n) float64; `combine` turns their sum (n,) into named scores; `table` has those per label."""

    statistics: np.ndarray
    combine: Callable[[Sums], Values]
    labels: tuple[str, ...] = ()
    table: Mapping[str, Values] = field(default_factory=dict)
    confusion: np.ndarray | None = None
    """(labels, labels) counts: the row is the right label, the column the answer."""

    def values(self) -> Values:
        return self.combine(self.statistics.sum(axis=0))

    def draws(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
        """(resamples,) values of each score, each over as many rows, drawn with replacement.

        `combine` returns NaN where no drawn row counts for a score; such a draw gets the value of all rows.
        """
        rng, rows = np.random.default_rng(seed), len(self.statistics)
        found = []
        for _ in range(resamples):
            times = np.bincount(rng.integers(rows, size=rows), minlength=rows)
            found.append(self.combine(times @ self.statistics))
        drawn = {name: np.array([one[name] for one in found]) for name in (found[0] if found else ())}
        values = self.values()
        return {name: np.where(np.isnan(draws), values[name], draws) for name, draws in drawn.items()}


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95%."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def classification(expected: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Scored:
    """One label for each text. Macro scores leave out labels that neither occur nor are predicted."""
    from sklearn.metrics import confusion_matrix

    names = [name for name in labels if name in {*expected, *predicted}]
    right = np.array([[name == one for name in names] for one in expected], dtype=float)
    chosen = np.array([[name == one for name in names] for one in predicted], dtype=float)
    combine = _label_scores(len(names), exclusive=True)
    confusion = confusion_matrix(expected, predicted, labels=names)
    return Scored(_outcomes(right, chosen), combine, tuple(names), _per_label(right, chosen, names), confusion)


def multi_label(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]) -> Scored:
    """Any number of labels for each text; `accuracy` counts texts with all labels right."""
    right = np.array([[name in one for name in labels] for one in expected], dtype=float)
    chosen = np.array([[name in one for name in labels] for one in predicted], dtype=float)
    combine = _label_scores(len(labels), exclusive=False)
    return Scored(_outcomes(right, chosen), combine, tuple(labels), _per_label(right, chosen, labels))


def _outcomes(right: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(rows, labels) twice -> (rows, 3 * labels + 2): true positives, chosen, right; whole row correct; 1."""
    correct = (right == chosen).all(axis=1, keepdims=True)
    return np.hstack([right * chosen, chosen, right, correct, np.ones_like(correct)]).astype(float)


def _label_scores(n: int, *, exclusive: bool) -> Callable[[Sums], Values]:
    def combine(sums: Sums) -> Values:
        hits, chosen, right = sums[:n], sums[n : 2 * n], sums[2 * n : 3 * n]
        occurs = (chosen + right) > 0 if exclusive else np.ones(n, dtype=bool)
        precision, recall, f1 = (
            _ratio(a, b)[occurs] for a, b in ((hits, chosen), (hits, right), (2 * hits, chosen + right))
        )
        macro = {"precision_macro": precision, "recall_macro": recall, "f1_macro": f1}
        micro = {
            "precision_micro": (hits, chosen),
            "recall_micro": (hits, right),
            "f1_micro": (2 * hits, chosen + right),
        }
        return {
            "accuracy": float(sums[-2] / sums[-1]),
            **{name: float(one.mean()) for name, one in macro.items()},
            **{name: float(_ratio(one.sum(), of.sum())) for name, (one, of) in micro.items()},
        }

    return combine


def _ratio(one: Any, other: Any) -> Any:
    return np.divide(one, other, out=np.zeros_like(np.asarray(one, dtype=float)), where=np.asarray(other) > 0)


def _per_label(right: np.ndarray, chosen: np.ndarray, names: Sequence[str]) -> dict[str, Values]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(right, chosen, average=None, zero_division=0)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(support)}
        for name, p, r, f, support in zip(names, *columns, strict=True)
    }


def regression(expected: Sequence[float], predicted: Sequence[float]) -> Scored:
    """Errors and Pearson's correlation of numbers."""
    x, y = np.array(expected, dtype=float), np.array(predicted, dtype=float)
    statistics = np.stack([(x - y) ** 2, abs(x - y), x, y, x * x, y * y, x * y, np.ones_like(x)], axis=1)

    def combine(sums: Sums) -> Values:
        square, absolute, sx, sy, sxx, syy, sxy, n = sums
        spread = max(sxx - sx * sx / n, 0.0) * max(syy - sy * sy / n, 0.0)
        pearson = (sxy - sx * sy / n) / math.sqrt(spread) if spread > 0 else 0.0
        return {"rmse": math.sqrt(square / n), "mae": absolute / n, "pearson": pearson}

    return Scored(statistics, combine)


Span = tuple[int, int, str]


def entities(texts: Sequence[str], expected: Sequence[set[Span]], predicted: Sequence[set[Span]]) -> Scored:
    """seqeval's strict scores: an entity is right with its type and both ends. Spans are in characters."""
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    types = sorted({span[2] for spans in (*expected, *predicted) for span in spans})
    counts = np.zeros((len(texts), 3 * len(types)))
    for row, (wanted, found) in enumerate(zip(expected, predicted, strict=True)):
        for offset, spans in enumerate((wanted & found, found, wanted)):
            for *_, label in spans:
                counts[row, offset * len(types) + types.index(label)] += 1
    table: dict[str, Values] = {}
    if types:
        tags = [
            [_tags(len(text), spans) for text, spans in zip(texts, side, strict=True)] for side in (expected, predicted)
        ]
        report = classification_report(*tags, output_dict=True, mode="strict", scheme=IOB2, zero_division=0)
        names = {"precision": "precision", "recall": "recall", "f1-score": "f1", "support": "rows"}
        table = {label: {names[key]: float(report[label][key]) for key in names} for label in types if label in report}

    def combine(sums: Sums) -> Values:
        hits, found, wanted = sums.reshape(3, -1)
        f1 = _ratio(2 * hits, found + wanted)[(found + wanted) > 0]
        return {
            "precision": float(_ratio(hits.sum(), found.sum())),
            "recall": float(_ratio(hits.sum(), wanted.sum())),
            "f1": float(_ratio(2 * hits.sum(), (found + wanted).sum())),
            "f1_macro": float(f1.mean()) if len(f1) else 0.0,
        }

    return Scored(counts, combine, tuple(types), table)


def _tags(length: int, spans: set[Span]) -> list[str]:
    """A tag of IOB2 for every character."""
    tags = ["O"] * length
    for start, end, label in spans:
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags


def answers(predicted: Sequence[str], accepted: Sequence[Sequence[str]]) -> Scored:
    """SQuAD's exact match and token F1, the best over the accepted answers; where none is accepted, "" is right."""
    rows = []
    for answer, references in zip(predicted, accepted, strict=True):
        pairs = [(_words(answer), _words(reference)) for reference in references or [""]]
        exact = float(max(left == right for left, right in pairs))
        f1 = max(_overlap_f1(left, right) for left, right in pairs)
        rows.append([exact, f1, 1.0] + ([exact, 1.0] if not references else [0.0, 0.0]))

    unanswerable = any(not references for references in accepted)

    def combine(sums: Sums) -> Values:
        exact, f1, n, right, without = map(float, sums)
        values = {"exact_match": 100 * exact / n, "f1": 100 * f1 / n}
        return values | ({"no_answer_accuracy": 100 * right / without if without else math.nan} if unanswerable else {})

    return Scored(np.array(rows), combine)


def _words(text: str) -> list[str]:
    """SQuAD's normalization: lower case, no punctuation, no English articles."""
    kept = (
        one for one in text.lower() if one not in string.punctuation and not unicodedata.category(one).startswith("P")
    )
    return re.sub(r"\b(?:a|an|the)\b", " ", "".join(kept)).split()


def _overlap_f1(left: list[str], right: list[str]) -> float:
    if not left or not right:
        return float(left == right)
    return 2 * (Counter(left) & Counter(right)).total() / (len(left) + len(right))


def translations(predicted: Sequence[str], expected: Sequence[str]) -> Scored:
    """sacrebleu's BLEU (13a tokens, exponential smoothing) and chrF, over all rows together."""
    from sacrebleu.metrics import BLEU, CHRF

    metrics = {"bleu": BLEU(), "chrf": CHRF()}
    # The statistics of sacrebleu's own bootstrap. Both methods are private, hence the pinned version.
    found = {
        name: np.array(one._extract_corpus_statistics(list(predicted), [list(expected)]), dtype=float)
        for name, one in metrics.items()
    }
    exact = np.array([[float(p == e), 1.0] for p, e in zip(predicted, expected, strict=True)])
    ends = np.cumsum([one.shape[1] for one in found.values()])

    def combine(sums: Sums) -> Values:
        parts = dict(zip(metrics, np.split(sums, ends), strict=False))
        scores = {
            name: metrics[name]._compute_score_from_stats(part.astype(int).tolist()).score
            for name, part in parts.items()
        }
        return {name: float(score) for name, score in scores.items()} | {
            "exact_match": 100 * float(sums[-2] / sums[-1])
        }

    return Scored(np.hstack([*found.values(), exact]), combine)


class UnicodeWords:
    """A tokenizer for rouge-score in every script: its own keeps a-z and 0-9 only, and no Korean."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def summaries(predicted: Sequence[str], expected: Sequence[str]) -> Scored:
    """rouge-score's F1 of words, pairs of words and the longest common subsequence, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    scorer = RougeScorer(list(names), tokenizer=UnicodeWords())
    rows = [scorer.score(wanted, found) for wanted, found in zip(expected, predicted, strict=True)]
    statistics = [
        [*(row[name].fmeasure for name in names), float(not found.strip()), 1.0]
        for row, found in zip(rows, predicted, strict=True)
    ]

    def combine(sums: Sums) -> Values:
        values = {name: float(total / sums[-1]) for name, total in zip(names.values(), sums, strict=False)}
        return values | {"empty": float(sums[-2] / sums[-1])}

    return Scored(np.array(statistics), combine)


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> Scored:
    """Perplexity from the summed negative logprobs of each text and the number of its predicted tokens."""

    def combine(sums: Sums) -> Values:
        return {"perplexity": math.exp(min(sums[0] / sums[1], 700.0)) if sums[1] else math.nan}

    return Scored(np.array([losses, tokens], dtype=float).T, combine)
