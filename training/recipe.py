"""FinetuneArgs: a recipe of `sextet finetune`, read from YAML and checked. Light: it imports no framework by itself."""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

import yaml
from msgspec import Meta

from pipelines.errors import ConfigurationError, InvalidInputError, UnknownKeyError
from pipelines.schema import OneOrMore, convert
from pipelines.tasks import TASKS

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Strategy = Literal["no", "steps", "epoch"]
SWITCHES = ("bf16", "lora", "freeze_embeddings", "load_best_model_at_end", "gradient_checkpointing", "fp16")
"""Flags that may stand without a value, for true."""


@dataclass(frozen=True)
class MarianArgs:
    """`model:` of a recipe that starts from nothing, named as in MarianConfig; 7 M parameters as it stands."""

    architecture: str = "marian"
    vocab_size: Positive = 8000
    d_model: Positive = 256
    encoder_layers: Positive = 4
    decoder_layers: Positive = 2
    attention_heads: Positive = 4
    ffn_dim: Positive = 1024
    dropout: Share = 0.1
    max_length: Positive = 128
    num_beams: Positive = 4
    source_lang: str = "en"
    target_lang: str = "fr"


@dataclass(frozen=True)
class LoraArgs:
    """A low-rank adapter: rank `r`, scaled by `alpha / r`, on the linear layers named so."""

    r: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.0
    target_modules: OneOrMore[str] = ("all-linear",)
    """Last parts of layer names; `all-linear` is every linear layer but the new head's."""


@dataclass(frozen=True)
class FinetuneArgs:
    """A recipe. Where TrainingArguments has the field, name and meaning are its own; its others may stand beside.

    A field with a text is a documented option of the command line; all others are options, too.
    """

    model: Annotated[str | MarianArgs, "What to start from: a folder, a Hub id or starter:NAME."]
    """Or a mapping with `architecture: marian`, to start from nothing."""
    task: Annotated[str, f"One of {', '.join(TASKS)}."]
    train: Annotated[OneOrMore[str], "Labelled rows: a file, SOURCE,TARGET or a Hub data set."]
    output: Annotated[str, "The folder of the finished checkpoint."]
    validation: Annotated[Mapping[str, str], "Other rows, on which each epoch is measured."] = field(
        default_factory=dict
    )
    """Named files, or one path; the score of each is reported under its name."""
    columns: Mapping[str, str | int] = field(default_factory=dict)
    """Where a field of evaluation.rows is: a column's name, or its number from 0 where there is no header."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """New names for labels of the files, such as {"0": negative, "1": positive}."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    """Of text-classification: one label for each text if absent."""
    encoding: str = "utf-8"
    format: str | None = None
    """The suffix to read the files by, where their own says something else: conll."""
    max_bad_rows: NotNegative = 0
    """Rows that may be reported and left out."""
    max_length: Annotated[int, Meta(ge=3)] = 128  # a token between those of the beginning and the end
    """Tokens per row. Longer rows are cut, read in windows (questions about a context), or divided (plain text)."""
    max_train_samples: Positive | None = None
    max_eval_samples: Positive | None = None
    lora: LoraArgs | None = None
    freeze_embeddings: bool = False
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None
    """The weight of a row by its label (of a token by its tag), 1 where not named; balanced: as if equally frequent."""
    early_stopping_patience: Positive | None = None
    """Evaluations without a better `metric_for_best_model` (loss if absent) after which to stop, with the best."""
    early_stopping_threshold: float = 0.0
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    load_best_model_at_end: bool = False
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: Positive = 8
    per_device_eval_batch_size: Positive = 32
    gradient_accumulation_steps: Positive = 1
    learning_rate: Annotated[float, Meta(ge=0)] = 5e-5
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.0
    label_smoothing_factor: Share = 0.0
    group_by_length: bool = True
    bf16: bool | Literal["auto"] = False
    """auto: where the GPU or CPU has instructions for it."""
    seed: NotNegative = 42
    eval_strategy: Strategy = "epoch"
    eval_steps: Positive | None = None
    save_strategy: Strategy = "epoch"
    save_steps: Positive = 500
    save_total_limit: Positive = 1
    logging_steps: Positive | None = None
    """10 if absent, or an epoch where that is shorter."""
    training_arguments: Mapping[str, Any] = field(default_factory=dict)
    """The other fields of TrainingArguments; in a recipe they stand beside the keys above."""

    @classmethod
    def read(cls, recipe: str | Path | None, flags: Sequence[str] = ()) -> Self:
        """A YAML file, then flags on top of it: `--name value` or `--name=value`, the value being YAML as well.

        Paths are relative to the working directory. Raises ConfigurationError as `from_mapping` does.
        """
        given: Any = {}
        if recipe is not None:
            try:
                given = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
            except (OSError, UnicodeError, yaml.YAMLError) as error:
                raise ConfigurationError(f"{recipe} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"{recipe} holds {given!r}; it must hold the keys of a recipe")
        return cls.from_mapping(_merged(given, _flags(flags)), str(recipe or "finetune"))

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], where: str = "recipe") -> Self:
        """Raises ConfigurationError for unknown keys (with the nearest valid name), missing keys and wrong types."""
        own = {one.name for one in dataclasses.fields(cls)}
        others = {name: given[name] for name in given if name not in own and name in _other_arguments()}
        rest = {name: value for name, value in given.items() if name not in others}
        args: Self = _converted(_as_typed(rest), cls, where)
        hints = _other_arguments()
        checked = {name: _plainly_typed(value, hints[name], name, where) for name, value in others.items()}
        return dataclasses.replace(args, training_arguments={**args.training_arguments, **checked})

    def __post_init__(self) -> None:
        if not math.isfinite(self.learning_rate):
            raise ConfigurationError(f"learning_rate is {self.learning_rate}; allowed: a number from 0")
        if self.max_steps >= 1:  # counted instead of the epochs
            return
        if self.max_steps != -1:
            raise ConfigurationError(f"max_steps is {self.max_steps}; allowed: from 1, or -1 for all the epochs")
        if not 0 < self.num_train_epochs < math.inf:
            raise ConfigurationError(f"num_train_epochs is {self.num_train_epochs}; allowed: a number above 0")


_NOT_OURS = {
    *("output_dir", "overwrite_output_dir", "do_train", "do_eval", "do_predict", "resume_from_checkpoint"),
    *("remove_unused_columns", "no_cuda", "local_rank", "label_names", "length_column_name", "run_name"),
    *("save_only_model", "ignore_data_skip", "logging_nan_inf_filter", "prediction_loss_only", "past_index"),
    *("auto_find_batch_size", "use_legacy_prediction_loop", "logging_dir", "project", "debug"),
}
"""Fields of TrainingArguments that finetune sets itself: files, resuming, evaluation."""


@cache
def _other_arguments() -> dict[str, Any]:
    """Fields of TrainingArguments that a recipe may have besides those of FinetuneArgs, and their types."""
    from transformers import TrainingArguments

    refused = ("push_to_hub", "hub_", "per_gpu_", "fsdp", "deepspeed", "_", "mp_", "tpu_", "trackio_", "ray_")
    hints = get_type_hints(TrainingArguments)
    known = [one.name for one in dataclasses.fields(TrainingArguments)]
    return {name: hints[name] for name in known if name not in _NOT_OURS and not name.startswith(refused)}


def _plainly_typed(value: Any, hint: Any, name: str, where: str) -> Any:
    """Check a number, text or boolean by its type in TrainingArguments; TrainingArguments checks the other types."""
    allowed = [one for one in (get_args(hint) or (hint,)) if one is not types.NoneType]
    if value is None or len(allowed) > 1 or allowed[0] not in (bool, int, float, str):
        return value
    return _converted(value, allowed[0], where, (name,))


def _flags(flags: Sequence[str]) -> dict[str, Any]:
    """`--lora.r 8` sets a key inside `lora`; a name may be written with hyphens."""
    given: dict[str, Any] = {}
    rest = list(flags)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        alone = not equals and (not rest or rest[0].startswith("--"))
        *outer, last = name.removeprefix("--").split(".")
        path = [name.replace("-", "_") for name in outer[:1]] + outer[1:] + [last if outer else last.replace("-", "_")]
        if not name.startswith("--") or (alone and path[0] not in SWITCHES):
            raise ConfigurationError(f"{name} is not an option with a value; write --NAME VALUE")
        place = given
        for key in path[:-1]:
            if place.get(key) is True:
                place[key] = {}  # `--lora --lora.r 8`
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ConfigurationError(f"{name} is given beside --{key} {place}; give one of them")
        text = "true" if alone else value if equals else rest.pop(0)
        if path in (["columns"], ["labels"]) and "=" in text:  # --columns text=document, as evaluate has it
            key, _, text = text.partition("=")
            place, path = place.setdefault(path[0], {}), [key]
        if path[-1] in place:
            if alone and isinstance(place[path[-1]], dict):
                continue  # `--lora.r 8 --lora`
            raise ConfigurationError(f"{name} is given twice; several values are one list: {name} '[a, b]'")
        try:
            place[path[-1]] = yaml.safe_load(text)
        except yaml.YAMLError:
            place[path[-1]] = text
    return given


def _merged(given: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    both = {name for name in flags if isinstance(flags[name], Mapping) and isinstance(given.get(name), Mapping)}
    return {**given, **flags, **{name: {**given[name], **flags[name]} for name in both}}


def _converted(value: Any, kind: Any, where: str, path: tuple[str, ...] = ()) -> Any:
    """The value as `kind`; raises ConfigurationError where it does not fit."""
    try:
        return convert(value, kind, path, texts=True)  # YAML reads 5e-5 as a text
    except InvalidInputError as error:
        place = (error.path or ())[:-1] if isinstance(error, UnknownKeyError) else error.path or ()
        raise ConfigurationError(f"{': '.join([where, *map(str, place)])} {error.problem}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _as_typed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without short forms: a single validation file, `lora: true`, `no` (false in YAML), null."""
    written = {name: value for name, value in given.items() if value is not None}
    if isinstance(written.get("validation"), str):
        written["validation"] = {"validation": written["validation"]}
    if written.get("lora") is True:
        written["lora"] = {}
    for name in ("eval_strategy", "save_strategy"):
        if written.get(name) is False:
            written[name] = "no"
    return written
