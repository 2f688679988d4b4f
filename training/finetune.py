"""`sextet finetune RECIPE.yaml`: a checkpoint and labelled files become a checkpoint for `sextet export`.

OUTPUT afterwards
    config.json model.safetensors tokenizer files ...   the finished checkpoint (a LoRA adapter is merged into it)
    adapter/                                            the LoRA adapter and the new head alone, where `lora` is set
    recipe.yaml metrics.json                            the settings, and the scores
    README.md learning-curve.png                        the same for people
    checkpoints/                                        while training: a killed run continues from the last one
"""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import yaml
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from checkpoints.frameworks import Progress, full_disk
from checkpoints.heads import MULTI_LABEL, REGRESSION
from evaluation import plots
from evaluation.measures import check_labels, measure_of
from evaluation.rows import BadRows, DataArgs, read
from evaluation.scores import LOWER_IS_BETTER
from evaluation.systems import TorchSystem
from pipelines.errors import ConfigurationError, TrainingError
from pipelines.tasks import TASKS
from training.callbacks import Bar, EpochTable, Interruption, Lines, kept, last_whole_checkpoint
from training.card import checkpoint_card
from training.objective import Objective, objective_of
from training.recipe import FinetuneArgs, LoraArgs
from training.trainee import create, save, trainable
from training.trainer import WorkshopTrainer, class_weights, weighted_loss

__all__ = ["FinetuneArgs", "LoraArgs", "finetune"]

LENGTH_OF_TRAINING = {
    "num_train_epochs",
    "max_steps",
    "max_eval_samples",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_steps",
}
"""Keys that may differ between a run and the run that continues it."""


def finetune(args: FinetuneArgs, say: Progress = lambda line: print(line, file=sys.stderr)) -> Path:
    """Train, score on the validation files and write `args.output`; returns it.

    A run that was killed continues at its last checkpoint and ends as the uninterrupted one would have. Raises
    TrainingError where the training cannot go on, with what was trained until then kept for the next attempt.
    """
    output = Path(args.output)
    objective_type = objective_of(args.task)
    train, validation, bad_rows = _read(args, say)
    problem_type = args.problem_type if objective_type.has_problem_type else None
    labels = objective_type.label_names(train, problem_type)
    for rows in validation.values() if labels and problem_type != REGRESSION else ():
        check_labels(rows, labels, "the training files have")
    with _disk(output):
        _claim(output, args)
        transformers.set_seed(args.seed)
        transformers.logging.set_verbosity_error()  # it warns of new heads, which are wanted here
        model, tokenizer, base = create(args, objective_type, labels, train, say)
        objective = objective_type(tokenizer, args.max_length, labels, problem_type)
        _say_cut(objective, {"training": train, **validation}, say)
        trained, metrics = _train(args, trainable(args, model), objective, train, validation, say)
        metrics["training"] |= {"bad_rows": bad_rows} if bad_rows else {}
        save(trained, tokenizer, base, output)
        metrics |= {"validation": score(output, args, validation)}
        card = checkpoint_card(args, labels, metrics, base)
        (output / "README.md").write_text(card, encoding="utf-8")
        (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(table(metrics))
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return output


def score(checkpoint: Path, args: FinetuneArgs, validation: Mapping[str, Dataset]) -> dict[str, dict[str, float]]:
    """The scores of a checkpoint folder on each validation file, through transformers' own pipeline."""
    if not validation:
        return {}
    loader = getattr(transformers, TASKS[args.task].head.auto_class)
    model = loader.from_pretrained(checkpoint, dtype=torch.float32).to(_device())
    system = TorchSystem("PyTorch", args.task, model, AutoTokenizer.from_pretrained(checkpoint))
    found = {}
    for name, rows in validation.items():
        values = measure_of(args.task).score(system, rows, _parameters(args)).values()
        found[name] = {metric: round(value, 4) for metric, value in values.items()} | {"rows": len(rows)}
    return found


def table(metrics: Mapping[str, Any]) -> str:
    """metrics.json as a table: the training first, then a line per validation file and score."""
    lines = [("training", name, value) for name, value in metrics["training"].items()]
    lines += [(file, name, value) for file, found in metrics["validation"].items() for name, value in found.items()]
    return "\n".join(f"{where:<16}{name:<20}{value:>12}" for where, name, value in lines)


def _parameters(args: FinetuneArgs) -> dict[str, Any]:
    """Parameters of the questions while training: a half-trained model may never end its answer."""
    name = objective_of(args.task).max_answer
    return {} if name is None else {name: args.max_length}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _disk(output: Path) -> Iterator[None]:
    """Word a full disk as one TrainingError."""
    try:
        yield
    except (TrainingError, ConfigurationError):  # among the latter a full cache
        raise
    except Exception as error:
        if (cause := full_disk(error)) is None:
            raise
        raise TrainingError(
            f"{output} cannot be written: {cause.strerror}; free some, then run it again; "
            f"{kept(output / 'checkpoints')}"
        ) from error


def _read(args: FinetuneArgs, say: Progress) -> tuple[Dataset, dict[str, Dataset], int]:
    data = DataArgs(
        args.task, args.columns, args.labels, args.problem_type, args.encoding, args.format, args.max_bad_rows
    )
    bad = BadRows(args.max_bad_rows, say)
    train = read(args.train, data, bad).shuffle(seed=args.seed)
    validation = {name: read([file], data, bad) for name, file in args.validation.items()}
    if args.max_train_samples is not None:
        train = train.select(range(min(args.max_train_samples, len(train))))
    if args.max_eval_samples is not None:
        limit = args.max_eval_samples
        validation = {
            name: rows.shuffle(seed=args.seed).select(range(min(limit, len(rows)))) for name, rows in validation.items()
        }
    return train, validation, bad.count


def _say_cut(objective: Objective, data: Mapping[str, Dataset], say: Progress) -> None:
    for name, rows in data.items():
        if where := objective.cut(rows):
            say(
                f"{name}: {len(where)} of {len(rows)} rows have more than max_length {objective.max_length} tokens and "
                f"are cut there, the first of them {where[0]}"
            )


def _claim(output: Path, args: FinetuneArgs) -> None:
    """Make the output folder and write the recipe; refuse one that is finished, foreign, or of another recipe."""
    recipe = output / "recipe.yaml"
    wanted = json.loads(json.dumps(dataclasses.asdict(args)))
    if (output / "metrics.json").exists():
        raise ConfigurationError(f"{output} holds a finished run; remove it, or set another output")
    if recipe.exists():
        begun = json.loads(json.dumps(_begun(recipe)))
        changed = [name for name in wanted if begun.get(name) != wanted[name] and name not in LENGTH_OF_TRAINING]
        if changed:
            raise ConfigurationError(f"{output} was begun with another {changed[0]}; remove it, or set another output")
    elif output.exists() and any(output.iterdir()):
        raise ConfigurationError(f"{output} exists and is not the output of a finetuning; set another output")
    output.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _begun(recipe: Path) -> dict[str, Any]:
    """The keys of an earlier run, with defaults for those that its release did not have."""
    found = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    try:
        return dataclasses.asdict(FinetuneArgs.from_mapping(found))
    except ConfigurationError:
        return found if isinstance(found, dict) else {}


def _train(
    args: FinetuneArgs,
    model: PreTrainedModel,
    objective: Objective,
    train: Dataset,
    validation: Mapping[str, Dataset],
    say: Progress,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    checkpoints = Path(args.output) / "checkpoints"
    measure = measure_of(args.task)
    shown = measure.score_names(objective.problem_type)[:2]
    features = objective.features(train)
    epochs = EpochTable(shown)
    interruption = Interruption(say)

    def scores(name: str) -> dict[str, float]:
        """The scores of the model as it is now, computed as those of the finished one."""
        plain = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        system = TorchSystem("PyTorch", args.task, plain, objective.tokenizer)
        return measure.score(system, validation[name], _parameters(args)).values()

    trainer = WorkshopTrainer(
        scores=scores,
        evaluated=epochs.row,
        model=model,
        args=_settings(args, checkpoints, validation, len(features)),
        train_dataset=features,
        eval_dataset={name: objective.features(rows) for name, rows in validation.items()},
        data_collator=objective.collator(model),
        processing_class=objective.tokenizer,
        compute_loss_func=_loss(args, objective, features),
        callbacks=_callbacks(args, interruption),
    )
    trainer.remove_callback(PrinterCallback)
    has_bar = trainer.pop_callback(ProgressCallback) is not None and sys.stderr.isatty()
    trainer.add_callback(Bar() if has_bar else Lines(say))
    last = last_whole_checkpoint(checkpoints)
    if last is not None:
        say(f"going on from {last}")
    with interruption.listening():
        result = trainer.train(resume_from_checkpoint=str(last) if last else None)
    history = trainer.state.log_history
    title = f"{args.task}, {len(train)} rows"
    plots.learning_curve(history, shown, title, Path(args.output) / "learning-curve.png")
    losses = [entry["loss"] for entry in history if "loss" in entry] or [result.training_loss]  # logging_strategy: no
    training = {
        "rows": len(train),
        "steps": result.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 2),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
    }
    if trainer.state.best_metric is not None:
        training |= {"best_step": trainer.state.best_global_step, "best": round(trainer.state.best_metric, 4)}
    evaluations = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in entry.items()}
        for entry in history
        if any(name.startswith("eval_") for name in entry)
    ]
    return trainer.model, {"training": training, "evaluations": evaluations}


def _settings(args: FinetuneArgs, checkpoints: Path, validation: Mapping[str, Dataset], rows: int) -> TrainingArguments:
    own = {one.name for one in dataclasses.fields(TrainingArguments)}
    shared = {name: value for name, value in vars(args).items() if name in own}
    steps = math.ceil(rows / (args.per_device_train_batch_size * args.gradient_accumulation_steps))
    steps = steps if args.max_steps < 1 else min(steps, args.max_steps)
    shared["logging_steps"] = args.logging_steps or min(10, steps)  # a loss for each epoch, however small the data
    if args.bf16 == "auto":
        shared["bf16"] = _has_bf16()
    if not validation:
        shared["eval_strategy"] = "no"
    if args.eval_strategy != "steps":
        del shared["eval_steps"]
    if args.early_stopping_patience is not None or args.load_best_model_at_end:
        shared |= {"load_best_model_at_end": True} | _best_metric(args, validation)
    else:
        shared["metric_for_best_model"] = None
    more = {"report_to": [], "dataloader_pin_memory": torch.cuda.is_available(), **args.training_arguments}
    try:
        return TrainingArguments(
            **shared | more,
            output_dir=str(checkpoints),
            use_cpu=not torch.cuda.is_available(),  # without it, bf16 is refused on machines that have no GPU
            remove_unused_columns=False,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigurationError(f"recipe: {' '.join(str(error).split())}") from None


def _best_metric(args: FinetuneArgs, validation: Mapping[str, Dataset]) -> dict[str, Any]:
    """`metric_for_best_model` under Trainer's name for it, and whether greater is better."""
    if not validation or args.eval_strategy == "no":
        raise ConfigurationError(
            "early_stopping_patience and load_best_model_at_end compare evaluations: set validation and eval_strategy"
        )
    names = ("loss", *measure_of(args.task).score_names(args.problem_type))
    wanted = args.metric_for_best_model or "loss"
    allowed = [f"{file}_{name}" for file in validation for name in names]
    full = f"{next(iter(validation))}_{wanted}" if len(validation) == 1 and wanted in names else wanted
    if full not in allowed:
        known = names if len(validation) == 1 else allowed
        raise ConfigurationError(f"metric_for_best_model is {wanted!r}; allowed: {', '.join(known)}")
    lower = full.endswith(tuple(LOWER_IS_BETTER))
    better = args.greater_is_better if args.greater_is_better is not None else not lower
    return {"metric_for_best_model": full, "greater_is_better": better}


def _callbacks(args: FinetuneArgs, interruption: Interruption) -> list[Any]:
    if args.early_stopping_patience is None:
        return [interruption]
    return [interruption, EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold)]


def _loss(args: FinetuneArgs, objective: Objective, features: Dataset) -> Callable[..., torch.Tensor] | None:
    """The loss with label weights, where the recipe sets any."""
    if args.class_weights is None:
        return None
    if not objective.labels or objective.problem_type in (MULTI_LABEL, REGRESSION):
        raise ConfigurationError("class_weights is set; allowed where each text or token has one of several labels")
    if unknown := [
        name for name in args.class_weights if name not in objective.labels and args.class_weights != "balanced"
    ]:
        raise ConfigurationError(f"class_weights names {unknown[0]!r}; the labels are {', '.join(objective.labels)}")
    flat = (one for value in features["labels"] for one in (value if isinstance(value, list) else [value]))
    weights = class_weights(objective.labels, (one for one in flat if one >= 0), args.class_weights)
    return weighted_loss(weights, args.label_smoothing_factor)


def _has_bf16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
