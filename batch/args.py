"""BatchArgs: the options of `sextet batch`, checked before anything starts. Light: it imports no framework."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, get_args

from pipelines.errors import ConfigurationError, InvalidInputError
from pipelines.misfit import nearest, shown
from pipelines.runtime.providers import Device
from pipelines.schema import encode
from pipelines.tasks import TASKS
from pipelines.tasks.task import Task

FORMATS = (".jsonl", ".ndjson", ".parquet")
SHARD = "*"
"""In the name of an output: each part is a file of its own, with its number in this place."""
OWN_FIELDS = ("row", "file", "answer")
DEVICES: tuple[str, ...] = get_args(Device)
MAX_SHARD_ROWS = 100_000
MAX_INPUTS = 100_000
MAX_ACTORS = 4096
MAX_THREADS = 1024
ENCODER_ROWS, GENERATOR_ROWS = 2048, 64  # of a part: what a kill costs is a few seconds of work, or a few minutes


@dataclass(frozen=True)
class BatchArgs:
    """What is answered, by whom, and where the answers go.

    `model` is an artifact's address (stores.address), or with `url` the name of a served model; None is its default.
    `columns` names the column of each field of the task. `keep` are columns that are copied beside the answer.
    """

    task: str
    inputs: tuple[str, ...]
    output: str
    model: str | None = None
    url: str | None = None
    key: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str | int] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    encoding: str = "utf-8"
    format: str | None = None
    shard_rows: int | None = None
    max_bad_rows: int = 1000
    device: Device = "cpu"
    actors: int = 1
    threads: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigurationError, or InvalidInputError for parameters that the task does not take."""
        if self.task not in TASKS:
            raise ConfigurationError(
                f"--task is {shown(self.task)}{nearest(self.task, TASKS)}; tasks: {', '.join(TASKS)}"
            )
        if self.model is None and self.url is None:
            raise ConfigurationError("--model is missing; allowed: an artifact, or --url for a cluster that serves")
        if self.device not in DEVICES:
            raise ConfigurationError(f"--device is {shown(self.device)}; allowed: {', '.join(DEVICES)}")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ConfigurationError(f"--url is {shown(self.url)}; allowed: an address such as http://127.0.0.1:8000")
        if self.url is not None and (self.device != "cpu" or self.threads is not None):
            raise ConfigurationError("--device and --threads are for --model; with --url the cluster's own models run")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ConfigurationError(f"--encoding is {self.encoding!r}, which Python does not know") from None
        self._check_numbers()
        self._check_output()
        self._check_columns()
        try:
            self.definition.pipeline.parameters_type.from_mapping(self.parameters)
        except InvalidInputError as error:
            raise ConfigurationError(f"--parameters: {error}") from None

    @property
    def definition(self) -> Task:
        return TASKS[self.task]

    @property
    def part_rows(self) -> int:
        """Rows of a part."""
        return self.shard_rows or (GENERATOR_ROWS if self.definition.generates else ENCODER_ROWS)

    @property
    def suffix(self) -> str:
        """The format of the output."""
        return PurePosixPath(self.output).suffix

    @property
    def is_sharded(self) -> bool:
        return SHARD in self.output

    @property
    def optional_fields(self) -> tuple[str, ...]:
        """Fields of an input that may be absent."""
        return tuple(one for one in self.definition.optional_columns if one not in self.definition.text_fields)

    def _check_numbers(self) -> None:
        for option, value, least, most in (
            ("--shard-rows", self.shard_rows, 1, MAX_SHARD_ROWS),
            ("--max-bad-rows", self.max_bad_rows, 0, None),
            ("--actors", self.actors, 1, MAX_ACTORS),
            ("--threads", self.threads, 1, MAX_THREADS),
        ):
            if value is not None and (value < least or (most is not None and value > most)):
                allowed = f"{least} and above" if most is None else f"{least} to {most}"
                raise ConfigurationError(f"{option} is {value}; allowed: {allowed}")

    def _check_output(self) -> None:
        name = PurePosixPath(self.output)
        if self.suffix not in FORMATS:
            raise ConfigurationError(
                f"--output is {self.output!r}{nearest(self.suffix, FORMATS)}; allowed: a name that ends in "
                f"{', '.join(FORMATS)}, with a {SHARD} in it for a file per part"
            )
        if self.output.count(SHARD) > 1 or (SHARD in self.output and SHARD not in name.name):
            raise ConfigurationError(f"--output is {self.output!r}; allowed: one {SHARD}, in the name of the file")
        if self.output in self.inputs:
            raise ConfigurationError(f"--output is {self.output!r}, which is an input; allowed: another name")

    def _check_columns(self) -> None:
        fields = (*self.definition.text_fields, *self.optional_fields)
        for name in self.columns:
            if name not in fields:
                raise ConfigurationError(
                    f"--column {name}={self.columns[name]}: {self.task} has no field {name!r}{nearest(name, fields)}; "
                    f"allowed: {', '.join(fields)}"
                )
        for name in self.keep:
            if name in OWN_FIELDS:
                raise ConfigurationError(f"--keep {name}: the output has such a field of its own; rename the column")
        if len(encode(self.parameters)) > 2**20:
            raise ConfigurationError("--parameters has more than 1 MiB; allowed: at most that")
