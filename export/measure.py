"""Measure: ask a system every row of some data, and score its answers; one function per task."""

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset

from export import scores
from export.scores import Measured
from export.systems import System
from pipelines.errors import ConfigurationError, InvalidInputError

Parameters = Mapping[str, Any]
Measure = Callable[[System, Dataset, Parameters], Measured]
MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"
PROBLEM_TYPES = ("single_label_classification", MULTI_LABEL, REGRESSION)


def measure(task: str, system: System, rows: Dataset, parameters: Parameters | None = None) -> Measured:
    """How good the system's answers to `rows` (of export.datasets) are; `parameters` go along with every question."""
    return MEASURES[task](system, rows, parameters or {})


def _classified(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    columns = [name for name in ("text", "text_pair") if name in rows.column_names]
    results = system.answers("text-classification", rows.select_columns(columns).to_list(), parameters)
    expected = list(rows["label"])
    if system.problem_type == REGRESSION:
        return scores.regression(expected, [result[0]["score"] for result in results])
    labels = system.labels or tuple(sorted({one["label"] for result in results for one in result}))
    check_labels(rows, labels, f"{system.name} knows")
    if system.problem_type == MULTI_LABEL:
        chosen = [[one["label"] for one in result if one["score"] > 0.5] for result in results]
        return scores.multi_label(expected, chosen, labels)
    best = [max(result, key=lambda one: one["score"])["label"] for result in results]
    return scores.classification(expected, best, labels)


def check_labels(rows: Dataset, labels: tuple[str, ...], whose: str) -> None:
    """Raises InvalidInputError naming the first row whose label (or entity) is not among `labels`."""
    known = {*labels, *(label[2:] for label in labels if label[:2] in ("B-", "I-"))}
    column = "label" if "label" in rows.column_names else "entities"
    for value, where in zip(rows[column], rows["where"], strict=True):
        several = [
            one["label"] if isinstance(one, dict) else one for one in (value if isinstance(value, list) else [value])
        ]
        unknown = next((one for one in several if isinstance(one, str) and one not in known), None)
        if unknown is not None:
            shown = ", ".join(
                sorted({label.removeprefix("B-") for label in labels if label[:2] != "I-" and label != "O"})
            )
            raise InvalidInputError(
                f"{where}: {whose} no label {unknown!r}, only {shown}; rename it with --labels {unknown}=NAME"
            )


def _entities(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    texts = list(rows["text"])
    given = {"aggregation_strategy": "simple"} | dict(parameters)
    predicted = []
    for text, found in zip(texts, system.answers("token-classification", texts, given), strict=True):
        spans = set()
        for entity in found:
            surface = text[entity["start"] : entity["end"]]
            start = entity["start"] + len(surface) - len(surface.lstrip())  # "▁Seoul" spans the blank before it
            spans.add((start, entity["end"], entity["entity_group"]))
        predicted.append(spans)
    if system.labels:
        check_labels(rows, system.labels, f"{system.name} knows")
    expected = [{(one["start"], one["end"], one["label"]) for one in entities} for entities in rows["entities"]]
    return scores.entities(texts, expected, predicted)


def _answered(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    asked = [{"question": row["question"], "context": row["context"]} for row in rows]
    accepted = [answers["text"] for answers in rows["answers"]]
    given = {"handle_impossible_answer": not all(accepted)} | dict(parameters)
    results = system.answers("question-answering", asked, given)
    return scores.answers([result["answer"] for result in results], accepted)


def _translated(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    results = system.answers("translation", list(rows["source"]), parameters)
    return scores.translations([result["translation_text"] for result in results], list(rows["target"]))


def _summarized(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    results = system.answers("summarization", list(rows["source"]), parameters)
    return scores.summaries([result["summary_text"] for result in results], list(rows["target"]))


def _continued(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    return scores.perplexity(*zip(*system.losses(list(rows["text"]), parameters.get("max_length")), strict=True))


MEASURES: Mapping[str, Measure] = {
    "text-classification": _classified,
    "token-classification": _entities,
    "question-answering": _answered,
    "translation": _translated,
    "summarization": _summarized,
    "text-generation": _continued,
}


def score_names(task: str, problem_type: str | None) -> tuple[str, ...]:
    """What `measure` reports for a task, the one that sums it up first."""
    if task == "text-classification" and problem_type == REGRESSION:
        return ("rmse", "mae", "pearson")
    averages = tuple(f"{name}_{how}" for how in ("macro", "micro") for name in ("f1", "precision", "recall"))
    return {
        "text-classification": ("accuracy", *averages),
        "token-classification": ("f1", "precision", "recall", "f1_macro"),
        "question-answering": ("f1", "exact_match", "no_answer_accuracy"),
        "translation": ("bleu", "chrf", "exact_match"),
        "summarization": ("rouge_l", "rouge_1", "rouge_2", "empty"),
        "text-generation": ("perplexity",),
    }[task]


def check_problem_type(given: str | None) -> None:
    if given is not None and given not in PROBLEM_TYPES:
        raise ConfigurationError(f"problem_type is {given!r}; allowed: {', '.join(PROBLEM_TYPES)}")
