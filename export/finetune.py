"""`sextet finetune RECIPE.yaml`: a checkpoint and labelled files in, a checkpoint that `sextet export` takes out.

OUTPUT afterwards
    config.json model.safetensors tokenizer files ...   the finished checkpoint (a LoRA adapter is merged into it)
    adapter/                                            the LoRA adapter and the new head alone, where `lora` is set
    recipe.yaml metrics.json                            what was run, and how good it became
    checkpoints/                                        while training: a run that was killed goes on from the last one
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import yaml
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from export import datasets, marian
from export.checkpoint import resolve
from export.objective import Objective, Scores, objective_of
from export.recipe import FinetuneArgs, LoraArgs
from export.sampler import LengthGroupedSampler
from pipelines.errors import CheckpointError, ConfigurationError

__all__ = ["FinetuneArgs", "LoraArgs", "finetune", "score"]

LENGTH_OF_TRAINING = {
    "num_train_epochs",
    "max_steps",
    "max_eval_samples",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_steps",
}
"""What may differ between a run and the run that continues it."""


def finetune(args: FinetuneArgs) -> Path:
    """Train, score on the validation files and write `args.output`; returns it.

    A run that was killed continues at its last checkpoint and ends as the uninterrupted one would have.
    """
    output = Path(args.output)
    objective_type = objective_of(args.task)
    train, validation = _read(args)
    _claim(output, args)
    transformers.set_seed(args.seed)
    labels = objective_type.label_names(train)
    model, tokenizer = _create(args, objective_type, labels, train)
    objective = objective_type(tokenizer, args.max_length, labels)
    trained, metrics = _train(args, _trainable(args, model, objective_type), objective, train, validation)
    _save(trained, tokenizer, output)
    metrics |= {"validation": score(output, args.task, objective, validation)}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(table(metrics))
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return output


def score(checkpoint: Path, task: str, objective: Objective, validation: Mapping[str, Dataset]) -> dict[str, Scores]:
    """The scores of a checkpoint folder on each validation file, through transformers' own pipeline."""
    if not validation:
        return {}
    answer = transformers.pipeline(task, model=str(checkpoint))
    return {
        name: {metric: round(value, 4) for metric, value in objective.score(answer, rows).items()} | {"rows": len(rows)}
        for name, rows in validation.items()
    }


def table(metrics: Mapping[str, Any]) -> str:
    """metrics.json for people: the training first, then a line per validation file and score."""
    lines = [("training", name, value) for name, value in metrics["training"].items()]
    lines += [(file, name, value) for file, found in metrics["validation"].items() for name, value in found.items()]
    return "\n".join(f"{where:<16}{name:<16}{value:>12}" for where, name, value in lines)


def _read(args: FinetuneArgs) -> tuple[Dataset, dict[str, Dataset]]:
    train = datasets.read(args.train, args.task, args.columns).shuffle(seed=args.seed)
    validation = {name: datasets.read([file], args.task, args.columns) for name, file in args.validation.items()}
    if args.max_train_samples is not None:
        train = train.select(range(min(args.max_train_samples, len(train))))
    if args.max_eval_samples is not None:
        limit = args.max_eval_samples
        validation = {
            name: rows.shuffle(seed=args.seed).select(range(min(limit, len(rows)))) for name, rows in validation.items()
        }
    return train, validation


def _claim(output: Path, args: FinetuneArgs) -> None:
    """Make the output folder ours; refuse one that is finished, foreign, or half of a different run."""
    recipe = output / "recipe.yaml"
    wanted = json.loads(json.dumps(dataclasses.asdict(args)))
    if (output / "metrics.json").exists():
        raise ConfigurationError(f"{output} holds a finished run; remove it, or set another output")
    if recipe.exists():
        begun = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        changed = [name for name in wanted if begun.get(name) != wanted[name] and name not in LENGTH_OF_TRAINING]
        if changed:
            raise ConfigurationError(f"{output} was begun with another {changed[0]}; remove it, or set another output")
    elif output.exists() and any(output.iterdir()):
        raise ConfigurationError(f"{output} exists and is not the output of a finetuning; set another output")
    output.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _create(
    args: FinetuneArgs, objective: type[Objective], labels: tuple[str, ...], train: Dataset
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to be trained, with a new head where the task needs one, and its tokenizer."""
    if isinstance(args.model, marian.MarianArgs):
        texts = (row[side] for row in train for side in ("source", "target"))
        return marian.create(args.model, texts, Path(args.output) / "checkpoints" / "vocabulary")
    checkpoint = resolve(args.model)
    names: dict[str, Any] = {}
    if labels:
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, **names, **checkpoint.loading)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **checkpoint.loading)
        model = objective.model_class.from_pretrained(
            checkpoint.path, config=config, ignore_mismatched_sizes=True, dtype=torch.float32, **checkpoint.loading
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{args.model} cannot be loaded for {args.task}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has none; the collator only needs something to fill with
    return model, tokenizer


def _trainable(args: FinetuneArgs, model: PreTrainedModel, objective: type[Objective]) -> PreTrainedModel:
    """The model with everything frozen that the recipe does not train."""
    if args.lora is not None:
        names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
        config = peft.LoraConfig(
            r=args.lora.r,
            lora_alpha=args.lora.alpha,
            lora_dropout=args.lora.dropout,
            target_modules=_linear_layers(model, args.lora, objective.heads),
            modules_to_save=[head for head in objective.heads if head in names] or None,
            task_type=objective.peft_type,
        )
        model = peft.get_peft_model(model, config)
    if args.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    return model


def _linear_layers(model: PreTrainedModel, lora: LoraArgs, heads: tuple[str, ...]) -> list[str]:
    """Full names of the layers that get an adapter: those named in the recipe, outside of the new head."""
    chosen = [
        name
        for name, _ in model.named_modules()
        if name.rsplit(".", 1)[-1] in lora.target_modules and not set(name.split(".")) & set(heads)
    ]
    if not chosen:
        raise ConfigurationError(f"lora.target_modules {', '.join(lora.target_modules)}: the model has no such layer")
    return chosen


def _train(
    args: FinetuneArgs, model: PreTrainedModel, objective: Objective, train: Dataset, validation: Mapping[str, Dataset]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    checkpoints = Path(args.output) / "checkpoints"
    own = {one.name for one in dataclasses.fields(TrainingArguments)}
    shared = {name: value for name, value in vars(args).items() if name in own}
    if not validation:
        shared["eval_strategy"] = "no"
    if args.eval_strategy != "steps":
        del shared["eval_steps"]
    settings = TrainingArguments(
        **shared,
        output_dir=str(checkpoints),
        use_cpu=not torch.cuda.is_available(),  # without it, bf16 is refused on machines that have no GPU
        report_to=[],
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = GroupingTrainer(
        model=model,
        args=settings,
        train_dataset=objective.features(train),
        eval_dataset={name: objective.features(rows) for name, rows in validation.items()},
        data_collator=objective.collator(model),
        processing_class=objective.tokenizer,
    )
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None
    result = trainer.train(resume_from_checkpoint=last)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] or [math.nan]
    training = {
        "rows": len(train),
        "steps": result.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 2),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
    }
    return trainer.model, {"training": training}


class GroupingTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed for mypy
    """transformers' Trainer, with an order of rows that a resumed run repeats."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_length:
            sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler
        lengths = [len(ids) for ids in rows["input_ids"]]
        return LengthGroupedSampler(lengths, self.args.train_batch_size, self.args.seed)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    if isinstance(model, peft.PeftModel):
        model.save_pretrained(output / "adapter")
        model = model.merge_and_unload()
        # An adapter names neither labels nor architecture; `save_pretrained` of the model would set the latter.
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(output / "adapter")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
