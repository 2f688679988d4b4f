"""Objective: what fine-tuning has to know about a task.

Rows (export.datasets) become features: the token ids and labels of each, not yet padded. The score of a finished
checkpoint is measured through `transformers.pipeline`, on what a user of it would see.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from export import scores
from pipelines.errors import ConfigurationError

IGNORED = -100  # the label that torch's cross entropy leaves out
Collator = Any  # of transformers: features of several rows in, padded tensors out
Features = Mapping[str, list[Any]]
Scores = dict[str, float]


@dataclass(frozen=True)
class Objective(ABC):
    """A task's way from rows to features; `labels` are the names in id order, empty where there are none."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    labels: tuple[str, ...] = ()

    model_class: ClassVar[Any]
    peft_type: ClassVar[str]
    heads: ClassVar[tuple[str, ...]] = ()
    """Names of the modules that are new, and so are trained in full beside a LoRA adapter."""

    @classmethod
    def label_names(cls, rows: Dataset) -> tuple[str, ...]:
        """The labels that occur, in id order."""
        return ()

    @abstractmethod
    def encode(self, rows: Features) -> Features:
        """A batch of rows as features; a long row may become several."""

    def collator(self, model: PreTrainedModel) -> Collator:
        return DataCollatorWithPadding(self.tokenizer)

    @abstractmethod
    def score(self, answer: Callable[..., Any], rows: Dataset) -> Scores:
        """`answer` is the checkpoint's transformers pipeline."""

    def features(self, rows: Dataset) -> Dataset:
        return rows.map(self.encode, batched=True, remove_columns=rows.column_names, keep_in_memory=True)

    def ids(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}


class TextClassification(Objective):
    model_class = AutoModelForSequenceClassification
    peft_type = "SEQ_CLS"
    heads = ("pooler", "classifier", "score", "pre_classifier")

    @classmethod
    def label_names(cls, rows: Dataset) -> tuple[str, ...]:
        return tuple(sorted(set(rows["label"])))

    def encode(self, rows: Features) -> Features:
        pairs = [rows["text_pair"]] if "text_pair" in rows else []
        encoded: Features = self.tokenizer(rows["text"], *pairs, truncation=True, max_length=self.max_length)
        ids = self.ids()
        return {**encoded, "labels": [ids[label] for label in rows["label"]]}

    def score(self, answer: Callable[..., Any], rows: Dataset) -> Scores:
        columns = [name for name in ("text", "text_pair") if name in rows.column_names]
        texts = rows.select_columns(columns).to_list()
        predicted = [result["label"] for result in answer(texts, batch_size=32, truncation=True)]
        expected = list(rows["label"])
        return {
            "accuracy": scores.accuracy(predicted, expected),
            "macro_f1": scores.macro_f1(predicted, expected),
        }


class TokenClassification(Objective):
    model_class = AutoModelForTokenClassification
    peft_type = "TOKEN_CLS"
    heads = ("classifier", "score")

    @classmethod
    def label_names(cls, rows: Dataset) -> tuple[str, ...]:
        names = sorted({entity["label"] for entities in rows["entities"] for entity in entities})
        return ("O", *(f"{prefix}-{name}" for name in names for prefix in "BI"))

    def encode(self, rows: Features) -> Features:
        encoded = self.tokenizer(rows["text"], truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")
        columns = zip(rows["text"], rows["entities"], offsets, strict=True)
        return {**encoded, "labels": [self._tags(*column) for column in columns]}

    def _tags(self, text: str, entities: Sequence[Mapping[str, Any]], offsets: Sequence[tuple[int, int]]) -> list[int]:
        """A label id for each token; special tokens are ignored, and every subword of an entity is inside it."""
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

    def score(self, answer: Callable[..., Any], rows: Dataset) -> Scores:
        """Entities count when their type and both ends are right."""
        predicted = []
        for text, found in zip(
            rows["text"], answer(list(rows["text"]), batch_size=32, aggregation_strategy="simple"), strict=True
        ):
            spans = set()
            for entity in found:
                surface = text[entity["start"] : entity["end"]]
                start = entity["start"] + len(surface) - len(surface.lstrip())
                spans.add((start, entity["end"], entity["entity_group"]))
            predicted.append(spans)
        expected = [{(one["start"], one["end"], one["label"]) for one in entities} for entities in rows["entities"]]
        return scores.set_f1(predicted, expected)


class QuestionAnswering(Objective):
    model_class = AutoModelForQuestionAnswering
    peft_type = "QUESTION_ANS"
    heads = ("qa_outputs",)

    def encode(self, rows: Features) -> Features:
        """Overlapping windows over each context; a window that lacks the answer points at its first token."""
        questions = [question.strip() for question in rows["question"]]
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

    def score(self, answer: Callable[..., Any], rows: Dataset) -> Scores:
        asked = [{"question": row["question"], "context": row["context"]} for row in rows]
        results = answer(asked, batch_size=32)
        results = results if isinstance(results, list) else [results]
        return scores.answer_scores([result["answer"] for result in results], [row["text"] for row in rows["answers"]])


class TextToText(Objective):
    """Translation and summarization: `source` to `target` through an encoder-decoder."""

    model_class = AutoModelForSeq2SeqLM
    peft_type = "SEQ_2_SEQ_LM"
    answer_key: ClassVar[str]

    def encode(self, rows: Features) -> Features:
        encoded: Features = self.tokenizer(
            rows["source"], text_target=rows["target"], truncation=True, max_length=self.max_length
        )
        return encoded

    def collator(self, model: PreTrainedModel) -> Collator:
        return DataCollatorForSeq2Seq(self.tokenizer, model=model, label_pad_token_id=IGNORED)

    def predicted(self, answer: Callable[..., Any], rows: Dataset) -> list[str]:
        """The answers, as long as a target may be in training: a half-trained model need not stop by itself."""
        results = answer(list(rows["source"]), batch_size=32, truncation=True, max_new_tokens=self.max_length)
        return [result[self.answer_key] for result in results]


class Translation(TextToText):
    answer_key = "translation_text"

    def score(self, answer: Callable[..., Any], rows: Dataset) -> Scores:
        predicted = self.predicted(answer, rows)
        return {
            "bleu": scores.bleu(predicted, list(rows["target"])),
            "exact_match": scores.accuracy(predicted, list(rows["target"])),
        }


class Summarization(TextToText):
    answer_key = "summary_text"

    def score(self, answer: Callable[..., Any], rows: Dataset) -> Scores:
        return {"rouge_l": scores.rouge_l(self.predicted(answer, rows), list(rows["target"]))}


class TextGeneration(Objective):
    model_class = AutoModelForCausalLM
    peft_type = "CAUSAL_LM"

    def encode(self, rows: Features) -> Features:
        """Each text with the end-of-text token, so that the model learns to stop."""
        texts = [text + (self.tokenizer.eos_token or "") for text in rows["text"]]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        return {**encoded, "labels": [list(ids) for ids in encoded["input_ids"]]}

    def collator(self, model: PreTrainedModel) -> Collator:
        return DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=IGNORED)

    def score(self, answer: Callable[..., Any], rows: Dataset) -> Scores:
        """Perplexity per token over the texts, each read alone."""
        model: PreTrainedModel = answer.model  # type: ignore[attr-defined]
        loss, tokens = 0.0, 0
        for feature in self.features(rows):
            ids = torch.tensor([feature["input_ids"]], device=model.device)
            predicted = ids.shape[1] - 1
            with torch.inference_mode():
                loss += float(model(input_ids=ids, labels=ids).loss) * predicted if predicted else 0.0
            tokens += predicted
        return {"perplexity": math.exp(loss / max(tokens, 1))}


OBJECTIVES: Mapping[str, type[Objective]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "translation": Translation,
    "summarization": Summarization,
    "text-generation": TextGeneration,
}


def objective_of(task: str) -> type[Objective]:
    if task not in OBJECTIVES:
        raise ConfigurationError(f"task is {task!r}; allowed: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[task]
