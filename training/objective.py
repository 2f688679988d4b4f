"""Objectives: one per task, which fine-tuning reaches for. It turns rows into features for the loss.

Rows (evaluation.rows) become features: token ids and labels, not yet padded. evaluation.measures scores the answers.
An objective is a class that names its tasks; defining it registers it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from checkpoints.heads import ENCODER_DECODER, MULTI_LABEL, REGRESSION
from pipelines.errors import ConfigurationError, InvalidInputError
from pipelines.tasks import TASKS, question_answering, text_classification, text_generation, token_classification

IGNORED = -100  # the label that torch's cross entropy leaves out
Collator = Any  # of transformers: features of several rows in, padded tensors out
Features = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Objective(ABC):
    """How rows of a task become features. `labels` are the names in id order, empty where there are none.

    `has_problem_type`: a row has one label, several, or a number. `windowed`: long contexts are read in windows of
    max_length. `max_answer`: the parameter that bounds the answers of a model that has not learned to stop.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    tasks: ClassVar[tuple[str, ...]]
    has_problem_type: ClassVar[bool] = False
    windowed: ClassVar[bool] = False
    max_answer: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        OBJECTIVES.update(dict.fromkeys(cls.tasks, cls))

    @classmethod
    def label_names(cls, rows: Dataset, problem_type: str | None = None) -> tuple[str, ...]:
        """The labels that occur, in id order; raises InvalidInputError where there is nothing to tell apart."""
        return ()

    @abstractmethod
    def encode(self, rows: Features) -> Features:
        """A batch of rows as features; a long row may become several."""

    def collator(self, model: PreTrainedModel) -> Collator:
        return DataCollatorWithPadding(self.tokenizer)

    def features(self, rows: Dataset) -> Dataset:
        return rows.map(
            self.encode, batched=True, remove_columns=rows.column_names, keep_in_memory=True, desc="tokenizing"
        )

    def cut(self, rows: Dataset) -> list[str]:
        """The places of the rows that are cut at `max_length`."""
        if self.windowed:
            return []
        field = next(name for name in ("text", "source", "question") if name in rows.column_names)
        found: list[str] = []
        for batch in rows.iter(1000):
            pair = [batch["text_pair"]] if "text_pair" in batch else []
            lengths = map(len, self.tokenizer(batch[field], *pair, verbose=False)["input_ids"])
            found += [where for where, n in zip(batch["where"], lengths, strict=True) if n > self.max_length]
        return found

    def ids(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}


OBJECTIVES: dict[str, type[Objective]] = {}


class TextClassification(Objective):
    tasks = (text_classification.TASK.name,)
    has_problem_type = True

    @classmethod
    def label_names(cls, rows: Dataset, problem_type: str | None = None) -> tuple[str, ...]:
        if problem_type == REGRESSION:
            return ("score",)
        several = problem_type == MULTI_LABEL
        counts = Counter(label for value in rows["label"] for label in (value if several else [value]))
        if not counts or (len(counts) == 1 and not several):
            only = f"the label {next(iter(counts))!r}" if counts else "no label"
            raise InvalidInputError(f"every one of the {len(rows)} training rows has {only}; two labels are needed")
        return tuple(sorted(counts))

    def encode(self, rows: Features) -> Features:
        pairs = [rows["text_pair"]] if "text_pair" in rows else []
        encoded: Features = self.tokenizer(rows["text"], *pairs, truncation=True, max_length=self.max_length)
        return {**encoded, "labels": [self._target(label) for label in rows["label"]]}

    def _target(self, label: Any) -> Any:
        if self.problem_type == REGRESSION:
            return float(label)
        if self.problem_type == MULTI_LABEL:
            return [float(name in label) for name in self.labels]
        return self.labels.index(label)


class TokenClassification(Objective):
    tasks = (token_classification.TASK.name,)

    @classmethod
    def label_names(cls, rows: Dataset, problem_type: str | None = None) -> tuple[str, ...]:
        names = sorted({entity["label"] for entities in rows["entities"] for entity in entities})
        if not names:
            raise InvalidInputError(f"there is no entity in any of the {len(rows)} training rows")
        return ("O", *(f"{prefix}-{name}" for name in names for prefix in "BI"))

    def encode(self, rows: Features) -> Features:
        encoded = self.tokenizer(rows["text"], truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")
        columns = zip(rows["text"], rows["entities"], offsets, strict=True)
        return {**encoded, "labels": [self._tags(*column) for column in columns]}

    def _tags(self, text: str, entities: Sequence[Mapping[str, Any]], offsets: Sequence[tuple[int, int]]) -> list[int]:
        """A label id for each token. Special tokens are ignored; each subword of an entity belongs to it."""
        ids = self.ids()
        tags = [IGNORED if start == end else ids["O"] for start, end in offsets]
        for entity in entities:
            prefix = "B"
            for index, (start, end) in enumerate(offsets):
                start += len(text[start:end]) - len(text[start:end].lstrip())  # "▁Seoul" spans the blank before it
                if start < end and start < entity["end"] and end > entity["start"]:
                    tags[index] = ids[f"{prefix}-{entity['label']}"]
                    prefix = "I"
        return tags

    def collator(self, model: PreTrainedModel) -> Collator:
        return DataCollatorForTokenClassification(self.tokenizer)


class QuestionAnswering(Objective):
    tasks = (question_answering.TASK.name,)
    windowed = True

    def encode(self, rows: Features) -> Features:
        """Overlapping windows over each context; a window that lacks the answer points at its first token."""
        questions = [question.strip() for question in rows["question"]]
        for ids, where in zip(self.tokenizer(questions, verbose=False)["input_ids"], rows["where"], strict=True):
            if len(ids) > self.max_length // 2:
                raise InvalidInputError(
                    f"{where}: the question has {len(ids)} tokens, which leaves too little of max_length "
                    f"{self.max_length} for the context; set max_length to {2 * len(ids)} at least"
                )
        encoded = self.tokenizer(
            questions,
            rows["context"],
            truncation="only_second",
            max_length=self.max_length,
            stride=min(self.max_length // 2, 128),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        spans = [
            self._span(rows["answers"][source], encoded.sequence_ids(window), offsets[window])
            for window, source in enumerate(sources)
        ]
        starts, ends = zip(*spans, strict=True)
        return {**encoded, "start_positions": list(starts), "end_positions": list(ends)}

    @staticmethod
    def _span(
        answers: Mapping[str, Any], sequence: Sequence[int | None], offsets: Sequence[tuple[int, int]]
    ) -> tuple[int, int]:
        """The first answer's first and last token in this window, or (0, 0)."""
        if not answers["text"]:
            return 0, 0
        first = answers["answer_start"][0]
        last = first + len(answers["text"][0])
        context = [index for index, (start, end) in enumerate(offsets) if sequence[index] == 1 and start < end]
        if not context or offsets[context[0]][0] > first or offsets[context[-1]][1] < last:
            return 0, 0
        inside = [index for index in context if offsets[index][0] < last and offsets[index][1] > first]
        return inside[0], inside[-1]


class TextToText(Objective):
    """`source` to `target` through an encoder-decoder."""

    tasks = tuple(task.name for task in TASKS.values() if task.head.auto_class == ENCODER_DECODER)
    max_answer = "max_new_tokens"

    def encode(self, rows: Features) -> Features:
        encoded: Features = self.tokenizer(
            rows["source"], text_target=rows["target"], truncation=True, max_length=self.max_length
        )
        return encoded

    def collator(self, model: PreTrainedModel) -> Collator:
        return DataCollatorForSeq2Seq(self.tokenizer, model=model, label_pad_token_id=IGNORED)


class TextGeneration(Objective):
    tasks = (text_generation.TASK.name,)
    max_answer = "max_length"

    def encode(self, rows: Features) -> Features:
        """Each text with the end-of-text token, so that the model learns to stop; a long one in several pieces."""
        texts = [text + (self.tokenizer.eos_token or "") for text in rows["text"]]
        ids = self.tokenizer(texts, verbose=False)["input_ids"]
        size = self.max_length
        pieces = [row[start : start + size] for row in ids for start in range(0, len(row), size)]
        pieces = [piece for piece in pieces if len(piece) > 1] or [ids[0]]  # a single token has no next one to predict
        return {
            "input_ids": pieces,
            "attention_mask": [[1] * len(piece) for piece in pieces],
            "labels": [list(piece) for piece in pieces],
        }

    def cut(self, rows: Dataset) -> list[str]:
        return []

    def collator(self, model: PreTrainedModel) -> Collator:
        return DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=IGNORED)


def objective_of(task: str) -> type[Objective]:
    """Raises ConfigurationError for a task that no objective trains."""
    if task not in OBJECTIVES:
        raise ConfigurationError(f"task is {task!r}; allowed: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[task]
