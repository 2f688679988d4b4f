"""The configuration of the six tasks, as cluster.yaml gives it: frozen objects, checked once. No ray in here.

    applications:
      - name: text-classification          the task
        args: {task: text-classification}
        deployments:
          - name: text-classification
            user_config: {...}             -> TaskConfig

Everything else in cluster.yaml is Ray Serve's own and is checked by Ray Serve's own schema (launch.py).
"""

import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pipelines.errors import ConfigurationError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.scheduling.scheduler import BatchingConfig, QueueConfig
from pipelines.tasks import TASKS
from stores.address import remote

ConfigT = TypeVar("ConfigT")
MOST_THREADS = 1024


@dataclass(frozen=True)
class SourceConfig:
    """What `sextet export --all` makes the artifact from; serving does not read it."""

    checkpoint: str
    revision: str | None = None
    precision: Literal["fp32", "fp16", "int8", "int4"] = "fp32"
    optimize: Literal["O1", "O2", "O3", "O4"] | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class LimitsConfig:
    """What one request may hold; more of it is answered with 413, a longer input with 422.

    `max_input_characters` bounds one input, before it is tokenized: a long one occupies a thread for a second.
    """

    max_inputs: int = 1024
    max_body_bytes: int = 4 * 2**20
    max_input_characters: int = 200_000
    max_rows: int = 4096
    max_tokens: int = 2**21

    def __post_init__(self) -> None:
        for name in ("max_inputs", "max_body_bytes", "max_input_characters", "max_rows", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; allowed: an integer from 1")


@dataclass(frozen=True)
class TaskConfig:
    """A task's `user_config`. `model` is the artifact's address (stores.address); `threads` are those of a forward, or
    shared by an encoder's `batching.concurrency` forwards at once: as many as the replica has CPUs if absent. `slots`
    is for models that write text.
    """

    model: str
    source: SourceConfig | None = None
    device: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    threads: int | None = None
    gpu_mem_limit_bytes: int | None = None
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    slots: SlotsConfig | None = None
    queue: QueueConfig = field(default_factory=QueueConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    drain_timeout_s: float = 300.0
    allow_unverified: bool = False

    def __post_init__(self) -> None:
        if remote(self.model) is not None and self.source is not None:
            raise ConfigurationError(f"source is set, but model is {self.model!r}; allowed with source: a folder")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ConfigurationError(f"threads is {self.threads}; allowed: 1 to {MOST_THREADS}")
        if not 0 <= self.drain_timeout_s <= 86_400:
            raise ConfigurationError(f"drain_timeout_s is {self.drain_timeout_s}; allowed: 0 to 86400 seconds")
        if self.gpu_mem_limit_bytes is not None and self.gpu_mem_limit_bytes < 1:
            raise ConfigurationError(f"gpu_mem_limit_bytes is {self.gpu_mem_limit_bytes}; allowed: an integer from 1")

    @classmethod
    def from_user_config(cls, given: Any, task: str) -> "TaskConfig":
        """Raises ConfigurationError that names the task, the key and what is allowed."""
        return _read(cls, given, f"user_config of {task}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A cluster.yaml as it stands; raises ConfigurationError for a file that is missing or not a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path} does not exist; name a Ray Serve config file such as cluster.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or not isinstance(content.get("applications"), list):
        raise ConfigurationError(f"{path} is not a Ray Serve config: it has no list of applications")
    return content


def read_tasks(path: Path) -> dict[str, TaskConfig]:
    """The tasks of a cluster.yaml in its order. A relative folder is relative to the file, and absolute here."""
    return {task: TaskConfig.from_user_config(given, task) for task, given in user_configs(located(path)).items()}


def located(path: Path) -> dict[str, Any]:
    """A cluster.yaml whose relative `model` folders have become absolute."""
    content = read_yaml(path)
    for user_config in user_configs(content).values():
        model = user_config.get("model") if isinstance(user_config, dict) else None
        if isinstance(model, str) and remote(model) is None:
            user_config["model"] = str(path.resolve().parent / model)
    return content


def user_configs(content: Mapping[str, Any]) -> dict[str, Any]:
    """The `user_config` of each task's deployment, unchecked and not copied."""
    found = {}
    for application in content["applications"]:
        args = application.get("args") if isinstance(application, dict) else None
        task = args.get("task") if isinstance(args, dict) else None
        if task is None:
            continue
        check_task(task)
        listed = application.get("deployments")
        deployments = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        deployment = next((one for one in deployments if one.get("name") == task), None)
        if application.get("name") != task or deployment is None or "user_config" not in deployment:
            raise ConfigurationError(
                f"the application of {task} needs name: {task} and a deployment {task} with user_config"
            )
        found[task] = deployment["user_config"]
    if not found:
        raise ConfigurationError(f"no application has args: {{task: ...}}; tasks: {', '.join(TASKS)}")
    return found


def cut_down(content: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A cluster.yaml with the applications of these names alone, in its order and not copied."""
    kept = [one for one in content["applications"] if isinstance(one, dict) and one.get("name") in names]
    return {**content, "applications": kept}


def check_task(task: Any) -> None:
    """Raise ConfigurationError unless `task` is one of the six, naming the nearest."""
    if task not in TASKS:
        raise ConfigurationError(f"args.task is {task!r}{_nearest(task, TASKS)}; tasks: {', '.join(TASKS)}")


def model_sources(path: Path) -> list[dict[str, Any]]:
    """For each task of a cluster.yaml that names a source: the arguments of the export that makes its artifact."""
    return [
        {
            "task": task,
            "output": Path(config.model),
            "device": "cpu" if config.device == "cpu" else "cuda",  # TensorRT takes what is made for CUDA
            **{one.name: getattr(config.source, one.name) for one in fields(config.source)},
        }
        for task, config in read_tasks(path).items()
        if config.source is not None
    ]


def unknown_key(key: Any, allowed: Any, where: str) -> ConfigurationError:
    """The error for a key that nobody reads, with the nearest name that somebody does."""
    return ConfigurationError(
        f"{where} has no key {key!r}{_nearest(key, allowed)}; allowed: {', '.join(sorted(allowed))}"
    )


def _nearest(name: Any, allowed: Any) -> str:
    close = get_close_matches(str(name), list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _read(cls: type[ConfigT], given: Any, where: str) -> ConfigT:
    """A mapping as a frozen dataclass, each value checked against its field's type; None means the default."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{where} is {given!r}; allowed: a mapping")
    hints = get_type_hints(cls)
    for key in given:
        if key not in hints:
            raise unknown_key(key, hints, where)
    values = {
        key: _value(value, hints[key], f"{where}: {key}", where) for key, value in given.items() if value is not None
    }
    try:
        return cls(**values)
    except TypeError:
        missing = [one.name for one in fields(cls) if one.name not in values]  # type: ignore[arg-type]
        raise ConfigurationError(f"{where} lacks {missing[0]!r}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _value(value: Any, hint: Any, name: str, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(one for one in get_args(hint) if one is not types.NoneType)
    if isinstance(hint, type) and is_dataclass(hint):
        return _read(hint, value, name)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigurationError(f"{name} is {value!r}; allowed: {', '.join(map(str, get_args(hint)))}")
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number if hint is float else isinstance(value, hint) and (number or hint is not int)
    if not fits:
        kind = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[hint]
        raise ConfigurationError(f"{name} is {value!r}; allowed: {kind}")
    return value
