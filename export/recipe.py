"""FinetuneArgs: a recipe of `sextet finetune`, read from YAML and checked."""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from export.marian import MarianArgs
from pipelines.errors import ConfigurationError

Strategy = Literal["no", "steps", "epoch"]


@dataclass(frozen=True)
class LoraArgs:
    """A low-rank adapter: rank `r`, scaled by `alpha / r`, on the linear layers named so."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("query", "key", "value", "dense")


@dataclass(frozen=True)
class FinetuneArgs:
    """A recipe. Where TrainingArguments has the field, name, meaning and default are its own."""

    model: str | MarianArgs
    """A local folder, a Hub id, `starter:NAME`, or a mapping with `architecture: marian` to start from nothing."""
    task: str
    train: tuple[str, ...]
    output: str
    validation: Mapping[str, str] = field(default_factory=dict)
    """Named files, or one path; the score of each is reported under its name."""
    columns: Mapping[str, str | int] = field(default_factory=dict)
    """Where a field of export.datasets is in the files: a column's name, or its number from 0 if there is no header."""
    max_length: int = 128
    """Tokens per row; longer rows are cut, or windowed for question-answering."""
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    lora: LoraArgs | None = None
    freeze_embeddings: bool = False
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
    bf16: bool = False
    seed: int = 42
    eval_strategy: Strategy = "epoch"
    eval_steps: int | None = None
    save_strategy: Strategy = "epoch"
    save_steps: int = 500
    save_total_limit: int = 1
    logging_steps: int = 10

    @classmethod
    def read(cls, recipe: str | Path | None, flags: Sequence[str] = ()) -> Self:
        """A YAML file, then flags on top of it: `--name value` or `--name=value`, the value being YAML as well.

        Paths are relative to the working directory. Raises ConfigurationError as `from_mapping` does.
        """
        given: Any = {}
        if recipe is not None:
            try:
                given = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError) as error:
                raise ConfigurationError(f"{recipe} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"{recipe} holds {given!r}; it must hold the keys of a recipe")
        return cls.from_mapping(_merged(given, _flags(flags)), str(recipe or "finetune"))

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], where: str = "recipe") -> Self:
        """Raises ConfigurationError for unknown keys (with the nearest valid name), missing keys and wrong types."""
        return _build(cls, given, where)


def _flags(flags: Sequence[str]) -> dict[str, Any]:
    """`--lora.r 8` sets a key inside `lora`; a name may be written with hyphens."""
    given: dict[str, Any] = {}
    rest = list(flags)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (equals or rest):
            raise ConfigurationError(f"{name} is not an option with a value; write --NAME VALUE")
        *outer, last = name.removeprefix("--").replace("-", "_").split(".")
        place = given
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = yaml.safe_load(value if equals else rest.pop(0))
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
        if isinstance(value, Mapping):
            arguments = tuple(one for one in arguments if dataclasses.is_dataclass(one)) or arguments
        elif str in arguments:
            arguments = (int,) if isinstance(value, int) and int in arguments else (str,)
        return _typed(value, next(one for one in arguments if one is not types.NoneType), where)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal and value is False and "no" in arguments:
        return "no"  # YAML reads a bare no as false
    if origin is Literal:
        return _require(value in arguments, value, where, f"one of {', '.join(arguments)}")
    if origin is tuple:
        return tuple(_typed(one, arguments[0], where) for one in (value if isinstance(value, list) else [value]))
    if origin is not None:
        return dict(value) if isinstance(value, Mapping) else {"validation": _typed(value, str, where)}
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
