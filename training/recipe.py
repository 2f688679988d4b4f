"""FinetuneArgs: a recipe of `sextet finetune`, read from YAML and checked. Light: it imports no framework by itself."""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pipelines.errors import ConfigurationError
from pipelines.tasks import TASKS

AT_LEAST = {
    **dict.fromkeys(("max_train_samples", "max_eval_samples", "early_stopping_patience"), 1),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("save_steps", "eval_steps", "logging_steps", "save_total_limit"), 1),
    **dict.fromkeys(("max_bad_rows", "learning_rate", "seed"), 0),
    "max_length": 3,  # a token between those that mark the beginning and the end
}
"""The least number that a key allows."""
Strategy = Literal["no", "steps", "epoch"]
SWITCHES = ("bf16", "lora", "freeze_embeddings", "load_best_model_at_end", "gradient_checkpointing", "fp16")
"""Flags that may stand without a value, for true."""


@dataclass(frozen=True)
class MarianArgs:
    """`model:` of a recipe that starts from nothing, named as in MarianConfig; 7 M parameters as it stands."""

    architecture: str = "marian"
    vocab_size: int = 8000
    d_model: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 2
    attention_heads: int = 4
    ffn_dim: int = 1024
    dropout: float = 0.1
    max_length: int = 128
    num_beams: int = 4
    source_lang: str = "en"
    target_lang: str = "fr"


@dataclass(frozen=True)
class LoraArgs:
    """A low-rank adapter: rank `r`, scaled by `alpha / r`, on the linear layers named so."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)
    """Last parts of layer names; `all-linear` is every linear layer but the new head's."""


@dataclass(frozen=True)
class FinetuneArgs:
    """A recipe. Where TrainingArguments has the field, name and meaning are its own; its others may stand beside.

    A field with a text is a documented option of the command line; all others are options, too.
    """

    model: Annotated[str | MarianArgs, "What to start from: a folder, a Hub id or starter:NAME."]
    """Or a mapping with `architecture: marian`, to start from nothing."""
    task: Annotated[str, f"One of {', '.join(TASKS)}."]
    train: Annotated[tuple[str, ...], "Labelled rows: a file, SOURCE,TARGET or a Hub data set."]
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
    max_bad_rows: int = 0
    """Rows that may be reported and left out."""
    max_length: int = 128
    """Tokens per row. Longer rows are cut, read in windows (questions about a context), or divided (plain text)."""
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    lora: LoraArgs | None = None
    freeze_embeddings: bool = False
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None
    """The weight of a row by its label (of a token by its tag), 1 where not named; balanced: as if equally frequent."""
    early_stopping_patience: int | None = None
    """Evaluations without a better `metric_for_best_model` (loss if absent) after which to stop, with the best."""
    early_stopping_threshold: float = 0.0
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    load_best_model_at_end: bool = False
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.0
    label_smoothing_factor: float = 0.0
    group_by_length: bool = True
    bf16: bool | Literal["auto"] = False
    """auto: where the GPU or CPU has instructions for it."""
    seed: int = 42
    eval_strategy: Strategy = "epoch"
    eval_steps: int | None = None
    save_strategy: Strategy = "epoch"
    save_steps: int = 500
    save_total_limit: int = 1
    logging_steps: int | None = None
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
        args = _build(cls, rest, where)
        for name, least in AT_LEAST.items():
            number = getattr(args, name)
            _require(number is None or least <= number < math.inf, number, f"{where}: {name}", f"{least} or more")
        if args.max_steps < 1:  # where there is a number of steps, they count instead of the epochs
            _require(args.max_steps == -1, args.max_steps, f"{where}: max_steps", "1 or more, or -1 for all the epochs")
            epochs = args.num_train_epochs
            _require(0 < epochs < math.inf, epochs, f"{where}: num_train_epochs", "more than 0")
        _require(args.lora is None or args.lora.r >= 1, args.lora and args.lora.r, f"{where}: lora: r", "1 or more")
        hints = _other_arguments()
        checked = {name: _plainly_typed(value, hints[name], f"{where}: {name}") for name, value in others.items()}
        return dataclasses.replace(args, training_arguments={**args.training_arguments, **checked})


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


def _plainly_typed(value: Any, hint: Any, where: str) -> Any:
    """Check a number, text or boolean by its type in TrainingArguments; TrainingArguments checks the other types."""
    allowed = [one for one in (get_args(hint) or (hint,)) if one is not types.NoneType]
    if (value is None and types.NoneType in get_args(hint)) or allowed[0] not in (bool, int, float, str):
        return value
    return _typed(value, allowed[0], where) if len(allowed) == 1 else value


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


Built = TypeVar("Built")


def _build(cls: type[Built], given: Any, where: str) -> Built:
    """The dataclass from a mapping, its field types taken as the schema."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{where} is {given!r}; it must be a mapping")
    known = {one.name: one for one in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            raise ConfigurationError(f"{where}: unknown key {name!r}; did you mean {near[0]!r}?")
    for name, one in known.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise ConfigurationError(f"{where}: {name!r} is missing")
    hints = get_type_hints(cls)
    return cls(**{name: _typed(value, hints[name], f"{where}: {name}") for name, value in given.items()})


def _typed(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        literals = [one for one in arguments if get_origin(one) is Literal]
        if literals and value in get_args(literals[0]):
            return value
        if isinstance(value, Mapping):
            fitting = (one for one in arguments if dataclasses.is_dataclass(one) or get_origin(one) is Mapping)
            arguments = tuple(fitting) or arguments
        elif str in arguments:
            arguments = (int,) if isinstance(value, int) and int in arguments else (str,)
        elif bool in arguments and literals:
            _require(isinstance(value, bool), value, where, f"true, false or {', '.join(get_args(literals[0]))}")
        elif value is True and any(dataclasses.is_dataclass(one) for one in arguments):
            value = {}  # `lora: true`: as it is by default
        return _typed(value, next(one for one in arguments if one is not types.NoneType), where)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal and value is False and "no" in arguments:
        return "no"  # YAML reads a bare no as false
    if origin is Literal:
        return _require(value in arguments, value, where, f"one of {', '.join(arguments)}")
    if origin is tuple:
        return tuple(_typed(one, arguments[0], where) for one in (value if isinstance(value, list) else [value]))
    if origin is not None and where.endswith(": validation") and not isinstance(value, Mapping):
        return {"validation": _typed(value, str, where)}
    if origin is not None:
        _require(isinstance(value, Mapping), value, where, "a mapping")
        kind = arguments[1]
        return {str(name): one if kind is Any else _typed(one, kind, f"{where}.{name}") for name, one in value.items()}
    if hint is float:
        try:
            return float(value)  # YAML reads 5e-5 as a text
        except (TypeError, ValueError):
            return _require(False, value, where, "a number")
    matches = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    return _require(matches, value, where, {str: "a text", int: "an integer", bool: "true or false"}[hint])


def _require(condition: bool, value: Any, where: str, allowed: str) -> Any:
    if not condition:
        raise ConfigurationError(f"{where} is {value!r}; it must be {allowed}")
    return value
