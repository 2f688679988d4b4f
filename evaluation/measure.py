"""Measure: ask a system every row of some data, and score its answers; one function per task."""

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset

from evaluation import scores
from evaluation.scores import Measured
from evaluation.systems import System
from pipelines.errors import ConfigurationError, InvalidInputError
from pipelines.tasks import TASKS

Parameters = Mapping[str, Any]
Measure = Callable[[System, Dataset, Parameters], Measured]
MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"
PROBLEM_TYPES = ("single_label_classification", MULTI_LABEL, REGRESSION)


def measure(task: str, system: System, rows: Dataset, parameters: Parameters | None = None) -> Measured:
    """How good the system's answers to `rows` (of evaluation.datasets) are; `parameters` go with every question."""
    return MEASURES[task](system, rows, parameters or {})


def _classified(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    columns = [name for name in ("text", "text_pair") if name in rows.column_names]
    texts = rows.select_columns(columns).to_list()
    results = system.answers("text-classification", texts, parameters, list(rows["where"]))
    expected = list(rows["label"])
    if system.problem_type == REGRESSION:
        if several := next((len(result) for result in results if len(result) != 1), None):
            raise ConfigurationError(f"problem_type is regression, but {system.name} has {several} labels, not one")
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
    answers = system.answers("token-classification", texts, given, list(rows["where"]))
    for text, found in zip(texts, answers, strict=True):
        spans = set()
        for entity in found:
            surface = text[entity["start"] : entity["end"]]
            blanks = len(surface) - len(surface.lstrip())  # "▁Seoul" spans the blank before it
            start = entity["start"] + (blanks if blanks < len(surface) else 0)
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
    results = system.answers("question-answering", asked, given, list(rows["where"]))
    return scores.answers([result["answer"] for result in results], accepted)


def _translated(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    results = system.answers("translation", list(rows["source"]), parameters, list(rows["where"]))
    return scores.translations([result["translation_text"] for result in results], list(rows["target"]))


def _summarized(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    results = system.answers("summarization", list(rows["source"]), parameters, list(rows["where"]))
    return scores.summaries([result["summary_text"] for result in results], list(rows["target"]))


def _continued(system: System, rows: Dataset, parameters: Parameters) -> Measured:
    found = system.losses(list(rows["text"]), parameters.get("max_length"), list(rows["where"]))
    losses, tokens = zip(*found, strict=True)
    if not any(tokens):
        where = rows["where"][0]
        raise InvalidInputError(f"{where}: no text has two tokens, the second of which could be predicted")
    return scores.perplexity(losses, tokens)


MEASURES: Mapping[str, Measure] = {
    "text-classification": _classified,
    "token-classification": _entities,
    "question-answering": _answered,
    "translation": _translated,
    "summarization": _summarized,
    "text-generation": _continued,
}


_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "text-classification": {"top_k": None},
    "token-classification": {"aggregation_strategy": "simple"},
    "question-answering": {"top_k": 1},
    "translation": {"num_return_sequences": 1},
    "summarization": {"num_return_sequences": 1},
}
"""Parameters that say in what shape, and how often, is answered; other values cannot be scored."""


def check_parameters(task: str, given: Parameters) -> None:
    """Raises InvalidInputError for what the task does not have, and for what no score could be counted of."""
    if task == "text-generation":
        if unknown := next((name for name in given if name != "max_length"), None):
            raise InvalidInputError(f"parameters has {unknown}; allowed for perplexity: max_length")
        length = given.get("max_length")
        if length is not None and (not isinstance(length, int) or length < 2):
            raise InvalidInputError(f"parameters.max_length is {length!r}; allowed: an integer from 2")
        return
    TASKS[task].pipeline.parameters_type.from_mapping(given)
    for name, needed in _SHAPES[task].items():
        value = given.get(name)
        grouped = name == "aggregation_strategy" and value != "none"
        if value not in (None, needed) and not grouped:
            allowed = "leave it out" if needed is None else needed
            raise InvalidInputError(f"parameters.{name} is {value!r}; allowed where answers are scored: {allowed}")


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
