"""Heads: which transformers class does a task, as text. Importing this module loads no framework."""

from typing import Any

from pipelines.tasks import TASKS

DECODER, ENCODER_DECODER = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
"""The kinds of heads with labels: `problem_type` of a transformers config."""


def fits(task: str, config: Any) -> bool:
    """Whether a model with this transformers `config` may do the task: an encoder-decoder goes on from no prompt."""
    return not (config.is_encoder_decoder and TASKS[task].head.auto_class == DECODER)


def auto_class(task: str, config: Any) -> str:
    """The transformers Auto class that loads a checkpoint with this transformers `config` for a task.

    A task that generates may be done by an encoder-decoder or by a decoder-only model, whatever its own head is.
    """
    if not TASKS[task].generates:
        return TASKS[task].head.auto_class
    return ENCODER_DECODER if config.is_encoder_decoder else DECODER


def auto_classes() -> dict[str, str]:
    """The transformers Auto class for each `task_type` of PEFT."""
    return {task.head.peft_type: task.head.auto_class for task in TASKS.values()}
