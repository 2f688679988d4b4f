"""The configuration of the tasks, as cluster.yaml gives it: frozen objects, checked once. No ray in here.

    applications:
      - name: text-classification          the task
        args: {task: text-classification}
        deployments:
          - name: text-classification
            user_config: {...}             -> TaskConfig
      - name: text-classification.large    another model of the task
        args: {task: text-classification, model: large}
        route_prefix: /text-classification/large

Everything else in cluster.yaml is Ray Serve's own and is checked by Ray Serve's own schema (launch.py).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from msgspec import Meta

from pipelines.errors import ConfigurationError, InvalidInputError, UnknownKeyError, first_line
from pipelines.generation.adapters.stack import MAX_ADAPTERS
from pipelines.generation.slots.config import SlotsConfig
from pipelines.misfit import nearest, shown
from pipelines.runtime.artifact import Exporter, Optimization, Precision
from pipelines.scheduling.scheduler import GPU_BATCHING, BatchingConfig, QueueConfig
from pipelines.schema import Positive, Text, convert
from pipelines.tasks import TASKS
from stores.address import remote

ConfigT = TypeVar("ConfigT")
GPUS = ("cuda", "tensorrt")
MAX_THREADS = 1024
SEPARATOR = "."
"""Between task and model in the name of an application."""
MODEL_NAME = "[a-z0-9][a-z0-9-]{0,62}"
DEFAULT = "default"  # of a task with several models, in a path
RESERVED = ("v1", "v2", "predict", "rerank", "invocations", "ping", "health", DEFAULT)
"""What lies, or may lie one day, below a task's own path."""
MAX_INPUTS = 65_536  # what `max_inputs` may be at most: longer lists are refused while they are decoded
DRAIN_S = 300.0  # as long as a request may take where its replica, its model or the cluster ends
CUT_S = 5.0  # what a replica has beyond that, to tell requests that they are cut
MAX_DRAIN_S = 86_400
MAX_LOGGED_S = 86_400


@dataclass(frozen=True)
class SourceConfig:
    """What `sextet export --all` makes the artifact from; serving does not read it."""

    checkpoint: str
    revision: str | None = None
    precision: Precision = "fp32"
    optimize: Optimization | None = None
    exporter: Exporter = "optimum"
    allow_pickle: bool = False


@dataclass(frozen=True)
class LimitsConfig:
    """What one request may hold; more of it is answered with 413, a longer input with 422.

    Characters are those after NFKC, as tokenizers see them. `max_input_characters` bounds one input before it is
    tokenized: a long one occupies a thread for a second. `max_request_characters` bounds all inputs together; a body of
    plain text that `max_body_bytes` allows fits. `max_rows` bounds inputs x sequences (`n`, `best_of`, beams);
    `max_tokens` what all of them may read and write.
    """

    max_inputs: Annotated[int, Meta(ge=1, le=MAX_INPUTS)] = 1024
    max_body_bytes: Positive = 4 * 2**20
    max_input_characters: Positive = 200_000
    max_request_characters: Positive = 4 * 2**20
    max_rows: Positive = 4096
    max_tokens: Positive = 2**21


@dataclass(frozen=True)
class RequestLogConfig:
    """Which requests get a line in the log: a share of all, and those that take longer than `slower_than_s`."""

    sample: Annotated[float, Meta(ge=0, le=1)] = 0.0
    slower_than_s: Annotated[float, Meta(ge=0, le=MAX_LOGGED_S)] | None = None


@dataclass(frozen=True)
class TaskConfig:
    """A task's `user_config`. `model` is the artifact's address (stores.address); `threads` are those of a forward, or
    shared by an encoder's `batching.concurrency` forwards at once: as many as the replica has CPUs if absent. Where
    `gpu_mem_limit_bytes` is absent, a replica that reserves a part of a GPU may take that part of its memory. With
    `pin_cores` a replica has `threads` cores of the machine for itself (deployments/cores.py). `slots` is for
    models that write text. `adapters` are folders of LoRA adapters by name: each is a model of its own at
    /<task>/<name>, which shares the weights of `model`.
    """

    model: Text
    adapters: Annotated[dict[str, Text], Meta(max_length=MAX_ADAPTERS)] = field(default_factory=dict)
    source: SourceConfig | None = None
    device: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    threads: Annotated[int, Meta(ge=1, le=MAX_THREADS)] | None = None
    pin_cores: bool = False
    gpu_mem_limit_bytes: Positive | None = None
    cuda_graphs: bool = True
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    slots: SlotsConfig | None = None
    queue: QueueConfig = field(default_factory=QueueConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    request_log: RequestLogConfig = field(default_factory=RequestLogConfig)
    drain_timeout_s: Annotated[float, Meta(ge=0, le=MAX_DRAIN_S)] = DRAIN_S
    allow_unverified: bool = False

    def __post_init__(self) -> None:
        if remote(self.model) is not None and self.source is not None:
            raise ConfigurationError(f"source is set, but model is {self.model!r}; allowed with source: a folder")
        for name in self.adapters:
            check_model(name, "adapters")

    @property
    def adapter_folders(self) -> dict[str, Path]:
        return {name: Path(folder) for name, folder in self.adapters.items()}

    @property
    def of_model(self) -> "TaskConfig":
        """What a loaded model depends on, the rest made equal."""
        batching = BatchingConfig(concurrency=self.batching.concurrency)
        if self.device == "tensorrt":  # its engine is built for so many rows
            batching = replace(batching, max_batch_size=self.batching.max_batch_size)
        bounds = replace(self, queue=QueueConfig(), limits=LimitsConfig(), drain_timeout_s=0.0)
        return replace(bounds, source=None, batching=batching, request_log=RequestLogConfig())

    @classmethod
    def from_user_config(cls, given: Any, task: str) -> "TaskConfig":
        """`batching` has other defaults on a GPU. Raises ConfigurationError that names the task, the key and what is
        allowed.
        """
        if isinstance(given, Mapping) and given.get("device") in GPUS:
            batching = {} if given.get("batching") is None else given["batching"]
            if isinstance(batching, Mapping):
                given = {**given, "batching": {**asdict(GPU_BATCHING), **batching}}
        return read(cls, given, f"user_config of {task}")


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
        raise ConfigurationError(f"{path}: not valid YAML: {first_line(error)}") from None
    except RecursionError:
        raise ConfigurationError(f"{path} cannot be read: its lists and mappings are nested too deep") from None
    if not isinstance(content, dict) or not isinstance(content.get("applications"), list):
        raise ConfigurationError(f"{path} is not a Ray Serve config: it has no list of applications")
    return content


def read_tasks(path: Path) -> dict[str, TaskConfig]:
    """The models of a cluster.yaml in its order, by application. Relative folders are relative to the file, and
    absolute here.
    """
    return task_configs(located(path))


def task_configs(content: Mapping[str, Any]) -> dict[str, TaskConfig]:
    """The models of a cluster.yaml's content in its order, by application; raises ConfigurationError."""
    configs = {name: TaskConfig.from_user_config(given, name) for name, given in user_configs(content).items()}
    owners = {model: name for name in configs if (model := model_of(name)) is not None}
    for name, config in configs.items():
        for adapter in config.adapters:
            if adapter in owners:
                raise ConfigurationError(f"{name}: the adapter {adapter} has the name of a model of {owners[adapter]}")
            owners[adapter] = name
    return configs


def adapters_of(content: Mapping[str, Any]) -> dict[str, str]:
    """The application of the base of each adapter of a cluster.yaml's content, by the adapter's name."""
    return {adapter: name for name, config in task_configs(content).items() for adapter in config.adapters}


def application_of(task: str, model: str | None) -> str:
    """The application of a task's default model, or of one by name."""
    return task if model is None else f"{task}{SEPARATOR}{model}"


def route_of(application: str) -> str:
    return f"/{application.replace(SEPARATOR, '/')}"


def task_of(application: str) -> str:
    return application.partition(SEPARATOR)[0]


def model_of(application: str) -> str | None:
    """The name of the model; None for the default of its task."""
    return application.partition(SEPARATOR)[2] or None


def located(path: Path) -> dict[str, Any]:
    """A cluster.yaml whose relative folders of models and adapters have become absolute."""
    content, folder = read_yaml(path), path.resolve().parent
    for user_config in user_configs(content).values():
        given: dict[str, Any] = user_config if isinstance(user_config, dict) else {}
        model, adapters = given.get("model"), given.get("adapters")
        if isinstance(model, str) and remote(model) is None:
            given["model"] = str(folder / model)
        if isinstance(adapters, dict):
            given["adapters"] = {
                name: str(folder / one) if isinstance(one, str) else one for name, one in adapters.items()
            }
    return content


def user_configs(content: Mapping[str, Any]) -> dict[str, Any]:
    """The `user_config` of each model's deployment by its application, unchecked and not copied.

    A task's default model is the application of its name. Others are `<task>.<model>`, at `/<task>/<model>`.
    """
    found = {}
    for application in content["applications"]:
        args = application.get("args") if isinstance(application, dict) else None
        if not isinstance(args, dict) or args.get("task") is None:
            continue
        task = args["task"]
        check_task(task)
        model = args.get("model")
        if model is not None:
            check_model(model)
        name = application_of(task, model)
        listed = application.get("deployments")
        deployments = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        deployment = next((one for one in deployments if one.get("name") == task), None)
        if application.get("name") != name or deployment is None or "user_config" not in deployment:
            raise ConfigurationError(
                f"the application of {name} needs name: {name} and a deployment {task} with user_config"
            )
        if model is not None and application.get("route_prefix") != f"/{task}/{model}":
            raise ConfigurationError(f"{name}: route_prefix is not /{task}/{model}, where clients look for it")
        found[name] = deployment["user_config"]
    if not found:
        raise ConfigurationError(f"no application has args: {{task: ...}}; tasks: {', '.join(TASKS)}")
    _check_names(list(found))
    return found


def _check_names(applications: Sequence[str]) -> None:
    """Other models than the default have names of their own in the whole cluster: some protocols know no tasks."""
    owners: dict[str, str] = {}
    for application in applications:
        task, model = task_of(application), model_of(application)
        if model is None:
            continue
        if task not in applications:
            raise ConfigurationError(f"{application} needs the application {task}, the default model of its task")
        if model in owners:
            raise ConfigurationError(f"{application} and {owners[model]} are both called {model}; allowed: one of them")
        owners[model] = application


def deployment_of(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The deployment of an application that `user_configs` has, not copied."""
    task = task_of(name)
    (application,) = [one for one in content["applications"] if isinstance(one, dict) and one.get("name") == name]
    (deployment,) = [one for one in application["deployments"] if isinstance(one, dict) and one.get("name") == task]
    return deployment


def cut_down(content: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A cluster.yaml with the applications of these names alone, in its order and not copied."""
    kept = [one for one in content["applications"] if isinstance(one, dict) and one.get("name") in names]
    return {**content, "applications": kept}


def set_drains(content: Mapping[str, Any]) -> float:
    """Give each task's deployment the graceful_shutdown_timeout_s that follows from its `drain_timeout_s`.

    One that the file sets stays. Returns the longest. Raises ConfigurationError.
    """
    drains_s = []
    for task, user_config in user_configs(content).items():
        drain_s = TaskConfig.from_user_config(user_config, task).drain_timeout_s
        given = deployment_of(task, content).setdefault("graceful_shutdown_timeout_s", drain_s + CUT_S)
        if not isinstance(given, int | float) or not 0 <= given <= MAX_DRAIN_S + CUT_S:
            raise ConfigurationError(
                f"{task}: graceful_shutdown_timeout_s is {given!r}; allowed: 0 to {MAX_DRAIN_S} seconds"
            )
        drains_s.append(float(given))
    return max(drains_s)


def check_task(task: Any) -> None:
    """Raise ConfigurationError for what is no task, naming the nearest."""
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigurationError(f"args.task is {shown(task)}{nearest(task, TASKS)}; tasks: {', '.join(TASKS)}")


def check_model(model: Any, where: str = "args.model") -> None:
    """Raise ConfigurationError for what cannot be the name of a model, which is a part of paths."""
    if not isinstance(model, str) or not re.fullmatch(MODEL_NAME, model):
        allowed = "small letters, digits and -, a letter or digit first, at most 63"
        raise ConfigurationError(f"{where} is {shown(model)}; allowed: {allowed}")
    if model in TASKS or model in RESERVED:
        raise ConfigurationError(f"{where} is {model!r}; allowed: no task, and none of {', '.join(RESERVED)}")


def model_sources(path: Path) -> list[dict[str, Any]]:
    """For each task of a cluster.yaml that names a source: the arguments of the export that makes its artifact."""
    return [
        {
            "task": task_of(name),
            "output": Path(config.model),
            "device": config.device,
            **{one.name: getattr(config.source, one.name) for one in fields(config.source)},
        }
        for name, config in read_tasks(path).items()
        if config.source is not None
    ]


def unknown_key(key: Any, allowed: Any, where: str) -> ConfigurationError:
    """The error for a key that nobody reads, with the nearest name that somebody does."""
    return ConfigurationError(
        f"{where} has no key {key!r}{nearest(key, allowed)}; allowed: {', '.join(sorted(allowed))}"
    )


def read(cls: type[ConfigT], given: Any, where: str) -> ConfigT:
    """A mapping as a frozen dataclass; None means the default."""
    try:
        config: ConfigT = convert(given, cls)
    except InvalidInputError as error:
        path = (error.path or ())[:-1] if isinstance(error, UnknownKeyError) else error.path or ()
        raise ConfigurationError(f"{': '.join([where, *map(str, path)])} {error.problem}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    return config
