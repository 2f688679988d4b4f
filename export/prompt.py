"""Prompt: how a decoder-only instruct model is told to translate or to summarize, and how it is talked to."""

from typing import Any

from checkpoints.checkpoint import ResolvedCheckpoint
from checkpoints.heads import DECODER
from pipelines.errors import CheckpointError
from pipelines.tasks import TASKS

_INSTRUCTIONS = {
    "summarization": "Summarize the following text in one or two short sentences.\n\n{text}",
    "translation": (
        "Translate the following text from {src_lang} to {tgt_lang}. Answer with the translation only.\n\n{text}"
    ),
}


def prompt_template(checkpoint: ResolvedCheckpoint, task: str, tokenizer: Any) -> str | None:
    """The model's chat template around an instruction, with `{text}` in the place of the input.

    None where the model does the task without being told. It holds all special tokens that the prompt needs. Raises
    CheckpointError for a decoder that was not trained to follow instructions.
    """
    if task not in _INSTRUCTIONS or checkpoint.config.is_encoder_decoder:
        return None
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{checkpoint.name} cannot do {task}: it is a decoder without a chat template; "
            "use an instruct model, or an encoder-decoder"
        )
    message = {"role": "user", "content": _INSTRUCTIONS[task]}
    template = str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
    if "{text}" not in template:
        raise CheckpointError(f"the chat template of {checkpoint.name} drops the user's message")
    return template


def chat_template(task: str, tokenizer: Any) -> str | None:
    """The model's chat template, in Jinja, where the artifact may be asked to chat; None where it has none."""
    if TASKS[task].head.auto_class != DECODER:
        return None
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name: what transformers takes when no tools are given
        template = template.get("default")
    return template or None
