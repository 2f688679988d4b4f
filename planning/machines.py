"""Machines: the kinds that replicas may run on, what each has room for, and what it costs.

    kinds:
      - {name: cpu-8, cores: 8, memory_gib: 32, price_per_hour: 0.40, boot_s: 60}
      - {name: gpu-1, cores: 16, memory_gib: 64, gpus: 1, price_per_hour: 1.10, speed: 8.0}

`speed` is how fast a replica is there, next to where its costs were measured: measure it, a guess plans a guess.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from msgspec import Meta

from deployments.config import TaskConfig, deployment_of, read
from deployments.doctor.memory import replica_bytes
from pipelines.errors import ConfigurationError, first_line
from pipelines.runtime.artifact import ModelArtifact
from pipelines.schema import Text, check_fields
from planning.simulated.fleet import Site

GIB = 2**30
MAX_KINDS = 32
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


@dataclass(frozen=True)
class Needs:
    """What a replica takes of a machine."""

    cores: float
    memory_gib: float
    gpus: float = 0.0

    @classmethod
    def of(cls, application: str, content: Mapping[str, Any], config: TaskConfig, artifact: ModelArtifact) -> "Needs":
        """`threads` cores, or those that Ray reserves where those are more, the estimated memory, and Ray's GPUs."""
        options = deployment_of(application, content).get("ray_actor_options") or {}
        cores = max(float(config.threads or 1), float(options.get("num_cpus", 1.0)))
        memory_gib = replica_bytes(config, application, artifact) / GIB
        return cls(cores, memory_gib, float(options.get("num_gpus") or 0.0))


@dataclass(frozen=True)
class Kind:
    """One kind of machine. It boots for `boot_s`, and is paid until it had no replica for `idle_s`."""

    name: Text
    cores: Annotated[float, Meta(gt=0, le=4096)]
    memory_gib: Annotated[float, Meta(gt=0, le=65_536)]
    gpus: Annotated[float, Meta(ge=0, le=64)] = 0.0
    price_per_hour: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    speed: Annotated[float, Meta(ge=0.01, le=1000)] = 1.0
    boot_s: Seconds = 0.0
    idle_s: Seconds = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def room(self, needs: Needs) -> int:
        """How many replicas fit; 0 for none."""
        fitting = [self.cores / needs.cores, self.memory_gib / needs.memory_gib]
        if needs.gpus > 0:
            fitting.append(self.gpus / needs.gpus)
        return int(min(fitting) + 1e-9)

    def site(self, needs: Needs, start_s: float) -> Site:
        return Site(start_s, self.room(needs), self.speed, self.boot_s, self.idle_s)


@dataclass(frozen=True)
class _File:
    kinds: Annotated[list[Kind], Meta(min_length=1, max_length=MAX_KINDS)]


def read_kinds(path: Path) -> list[Kind]:
    """The kinds in a YAML file; raises ConfigurationError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"--machines: {path} does not exist") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"--machines: {path} cannot be read: {first_line(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--machines: {path} is no valid YAML: {first_line(error)}") from None
    kinds = read(_File, content, str(path)).kinds
    names = [one.name for one in kinds]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{path}: two kinds have one name; allowed: each has its own")
    return kinds


def this_machine() -> Kind:
    """The machine that plans, without a price."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Kind("like this one", cores, memory)


def with_room(kinds: Sequence[Kind], needs: Needs) -> list[Kind]:
    """Those that have room for a replica; raises ConfigurationError where none has."""
    found = [one for one in kinds if one.room(needs)]
    if not found:
        raise ConfigurationError(
            f"no kind of machine has room for a replica, which takes {needs.cores:g} cores, {needs.memory_gib:.1f} GiB "
            f"and {needs.gpus:g} GPUs"
        )
    return found
