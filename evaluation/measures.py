"""Measures: one per task. It asks a system every row of some data and scores the answers.

A measure is a class that names its task; defining it registers it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datasets import Dataset

from checkpoints.heads import MULTI_LABEL, PROBLEM_TYPES, REGRESSION
from evaluation import scores
from evaluation.scores import Scored
from evaluation.systems import System
from pipelines.errors import ConfigurationError, InvalidInputError
from pipelines.tasks import (
    TASKS,
    question_answering,
    summarization,
    text_classification,
    text_generation,
    token_classification,
    translation,
)

Parameters = Mapping[str, Any]


class Measure(ABC):
    """How good a system's answers to labelled rows (evaluation.rows) are.

    `names` are the scores, the one that sums them up first. `fixed` are parameters that decide the shape or the number
    of the answers: other values cannot be scored. `always` goes along with every question, `torch` with those to
    PyTorch, `served` with those to an artifact or a running task.
    """

    task: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    fixed: ClassVar[Parameters] = {}
    always: ClassVar[Parameters] = {}
    torch: ClassVar[Parameters] = {}
    served: ClassVar[Parameters] = {}

    def __init_subclass__(cls) -> None:
        if "task" in vars(cls):
            MEASURES[cls.task] = cls()

    @abstractmethod
    def score(self, system: System, rows: Dataset, parameters: Parameters) -> Scored:
        """Ask the system every row, with `parameters`, and score what it answers."""

    def score_names(self, problem_type: str | None) -> tuple[str, ...]:
        return self.names

    def check_parameters(self, given: Parameters) -> None:
        """Raises InvalidInputError for what the task does not have, and for what cannot be scored."""
        TASKS[self.task].pipeline.parameters_type.from_mapping(given)
        for name, needed in self.fixed.items():
            if given.get(name) not in (None, needed):
                allowed = "leave it out" if needed is None else needed
                raise InvalidInputError(
                    f"parameters.{name} is {given[name]!r}; allowed where answers are scored: {allowed}"
                )

    def answers(self, system: System, inputs: Sequence[Any], rows: Dataset, parameters: Parameters) -> list[Any]:
        """One answer per row, whose inputs are `inputs`."""
        given = {**parameters, **self.always, **(self.torch if system.in_torch else self.served)}
        return system.answers(self.task, inputs, given, list(rows["where"]))


MEASURES: dict[str, Measure] = {}


def measure_of(task: str) -> Measure:
    """Raises ConfigurationError for a task whose answers cannot be scored."""
    if task not in MEASURES:
        raise ConfigurationError(f"answers of the task {task!r} cannot be scored; allowed: {', '.join(MEASURES)}")
    return MEASURES[task]


class TextClassification(Measure):
    """One label, several labels, or a number for each text: as the system's `problem_type` says."""

    task = text_classification.TASK.name
    names = ("accuracy", *(f"{name}_{how}" for how in ("macro", "micro") for name in ("f1", "precision", "recall")))
    fixed: ClassVar[Parameters] = {"top_k": None}
    always: ClassVar[Parameters] = {"top_k": None}
    torch: ClassVar[Parameters] = {"truncation": True}

    def score_names(self, problem_type: str | None) -> tuple[str, ...]:
        return ("rmse", "mae", "pearson") if problem_type == REGRESSION else self.names

    def score(self, system: System, rows: Dataset, parameters: Parameters) -> Scored:
        columns = [name for name in ("text", "text_pair") if name in rows.column_names]
        results = self.answers(system, rows.select_columns(columns).to_list(), rows, parameters)
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


class TokenClassification(Measure):
    """Entities, right where type and both ends are."""

    task = token_classification.TASK.name
    names = ("f1", "precision", "recall", "f1_macro")

    def check_parameters(self, given: Parameters) -> None:
        super().check_parameters(given)
        if given.get("aggregation_strategy") == "none":
            raise InvalidInputError(
                "parameters.aggregation_strategy is 'none'; allowed where answers are scored: simple"
            )

    def score(self, system: System, rows: Dataset, parameters: Parameters) -> Scored:
        texts = list(rows["text"])
        results = self.answers(system, texts, rows, {"aggregation_strategy": "simple", **parameters})
        predicted = [{_span(text, entity) for entity in found} for text, found in zip(texts, results, strict=True)]
        if system.labels:
            check_labels(rows, system.labels, f"{system.name} knows")
        expected = [{(one["start"], one["end"], one["label"]) for one in entities} for entities in rows["entities"]]
        return scores.entities(texts, expected, predicted)


def _span(text: str, entity: Mapping[str, Any]) -> scores.Span:
    """Start and end in characters, and the type; without the blank before a word that "▁Seoul" spans."""
    surface = text[entity["start"] : entity["end"]]
    blanks = len(surface) - len(surface.lstrip())
    return entity["start"] + (blanks if blanks < len(surface) else 0), entity["end"], entity["entity_group"]


class QuestionAnswering(Measure):
    """Spans of a context; where some rows have no answer, "no answer" counts as one."""

    task = question_answering.TASK.name
    names = ("f1", "exact_match", "no_answer_accuracy")
    fixed: ClassVar[Parameters] = {"top_k": 1}

    def score(self, system: System, rows: Dataset, parameters: Parameters) -> Scored:
        asked = [{"question": row["question"], "context": row["context"]} for row in rows]
        accepted = [answers["text"] for answers in rows["answers"]]
        given = {"handle_impossible_answer": not all(accepted), **parameters}
        results = self.answers(system, asked, rows, given)
        return scores.answers([result["answer"] for result in results], accepted)


class _Text2Text(Measure):
    fixed: ClassVar[Parameters] = {"num_return_sequences": 1}
    torch: ClassVar[Parameters] = {"truncation": True}
    served: ClassVar[Parameters] = {"truncation": "longest_first"}

    def texts(self, system: System, rows: Dataset, parameters: Parameters) -> list[str]:
        key = TASKS[self.task].pipeline.answer_key
        return [result[key] for result in self.answers(system, list(rows["source"]), rows, parameters)]


class Translation(_Text2Text):
    task = translation.TASK.name
    names = ("bleu", "chrf", "exact_match")

    def score(self, system: System, rows: Dataset, parameters: Parameters) -> Scored:
        return scores.translations(self.texts(system, rows, parameters), list(rows["target"]))


class Summarization(_Text2Text):
    task = summarization.TASK.name
    names = ("rouge_l", "rouge_1", "rouge_2", "empty")

    def score(self, system: System, rows: Dataset, parameters: Parameters) -> Scored:
        return scores.summaries(self.texts(system, rows, parameters), list(rows["target"]))


class TextGeneration(Measure):
    """Perplexity: no answer is generated."""

    task = text_generation.TASK.name
    names = ("perplexity",)

    def check_parameters(self, given: Parameters) -> None:
        if unknown := next((name for name in given if name != "max_length"), None):
            raise InvalidInputError(f"parameters has {unknown}; allowed for perplexity: max_length")
        length = given.get("max_length")
        if length is not None and (not isinstance(length, int) or length < 2):
            raise InvalidInputError(f"parameters.max_length is {length!r}; allowed: an integer from 2")

    def score(self, system: System, rows: Dataset, parameters: Parameters) -> Scored:
        found = system.losses(self.task, list(rows["text"]), parameters.get("max_length"), list(rows["where"]))
        losses, tokens = zip(*found, strict=True)
        if not any(tokens):
            where = rows["where"][0]
            raise InvalidInputError(f"{where}: no text has two tokens, the second of which could be predicted")
        return scores.perplexity(losses, tokens)


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


def check_problem_type(given: str | None) -> None:
    if given is not None and given not in PROBLEM_TYPES:
        raise ConfigurationError(f"problem_type is {given!r}; allowed: {', '.join(PROBLEM_TYPES)}")
