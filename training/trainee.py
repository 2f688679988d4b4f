"""Trainee: the model to train, from its checkpoint to its folder, with or without a LoRA adapter."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.checkpoint import (
    ResolvedCheckpoint,
    keep_generation_parameters,
    load_tokenizer,
    max_length,
    set_window,
)
from checkpoints.frameworks import Progress
from checkpoints.gguf import GgufTokens
from checkpoints.heads import SINGLE_LABEL
from checkpoints.resolve import resolve
from pipelines.errors import CheckpointError, ConfigurationError, first_line
from pipelines.tasks import TASKS
from training import marian
from training.objective import Objective
from training.recipe import FinetuneArgs, LoraArgs, MarianArgs


def create(
    args: FinetuneArgs, objective: type[Objective], labels: tuple[str, ...], train: Dataset, say: Progress
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ResolvedCheckpoint | None]:
    """The model to train (with a new head where the task needs one), its tokenizer, and the checkpoint of both."""
    if isinstance(args.model, MarianArgs):
        texts = (row[side] for row in train for side in ("source", "target"))
        return *marian.create(args.model, texts, Path(args.output) / "checkpoints" / "vocabulary"), None
    checkpoint = resolve(args.model, progress=say)
    names: dict[str, Any] = {}
    if labels:
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if objective.has_problem_type:
        names["problem_type"] = args.problem_type or SINGLE_LABEL
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, **names, **checkpoint.loading)
        tokenizer = load_tokenizer(checkpoint)
        model = getattr(transformers, TASKS[args.task].head.auto_class).from_pretrained(
            checkpoint.path, config=config, ignore_mismatched_sizes=True, dtype=torch.float32, **checkpoint.loading
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{args.model} cannot be loaded for {args.task}: {first_line(error)}") from None
    if checkpoint.gguf:
        GgufTokens.read(checkpoint.gguf).correct_model(model)
    keep_generation_parameters(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has none; the collator needs a token to pad with
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if args.max_length > (longest := max_length(tokenizer, model)):
        raise ConfigurationError(f"max_length is {args.max_length}; {args.model} reads {longest} tokens at most")
    if objective.windowed:
        set_window(tokenizer, args.max_length)
    return model, tokenizer, checkpoint


def trainable(args: FinetuneArgs, model: PreTrainedModel) -> PreTrainedModel:
    """The model with everything frozen that the recipe does not train."""
    head = TASKS[args.task].head
    if args.lora is not None:
        names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
        config = peft.LoraConfig(
            r=args.lora.r,
            lora_alpha=args.lora.alpha,
            lora_dropout=args.lora.dropout,
            target_modules=_linear_layers(model, args.lora, head.modules),
            modules_to_save=[name for name in head.modules if name in names] or None,
            task_type=head.peft_type,
        )
        model = peft.get_peft_model(model, config)
    if args.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    return model


def _linear_layers(model: PreTrainedModel, lora: LoraArgs, heads: tuple[str, ...]) -> list[str]:
    """Full names of the layers that get an adapter: those that the recipe names, but for the new head."""
    everything = "all-linear" in lora.target_modules
    output = model.get_output_embeddings()
    chosen = [
        name
        for name, module in model.named_modules()
        if not set(name.split(".")) & set(heads)
        and module is not output
        and (_is_linear(module) if everything else name.rsplit(".", 1)[-1] in lora.target_modules)
    ]
    if not chosen:
        raise ConfigurationError(f"lora.target_modules {', '.join(lora.target_modules)}: the model has no such layer")
    return chosen


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, (torch.nn.Linear, transformers.pytorch_utils.Conv1D))


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: ResolvedCheckpoint | None, output: Path
) -> None:
    """Write the checkpoint, and for a LoRA run the adapter, which names its base so that others find it."""
    if isinstance(model, peft.PeftModel):
        assert base is not None
        adapter = model.active_peft_config
        folder = Path(base.name).expanduser()  # elsewhere, a relative path would be another folder, or a Hub id
        adapter.base_model_name_or_path = str(folder.resolve()) if folder.exists() else base.name
        adapter.revision = None if base.revision.startswith("sha256:") else base.revision
        model.save_pretrained(output / "adapter", save_embedding_layers=False)  # those are the base's
        model = model.merge_and_unload()
        # adapter_config.json names neither labels nor architecture: config.json does, beside it.
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(output / "adapter")
        tokenizer.save_pretrained(output / "adapter")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
