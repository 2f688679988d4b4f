"""Phase: a part of the measurements with a result of its own, so that one that is cut off loses nothing."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures.bars import STREAMS
from benchmarks.suites.cluster import measured_cluster
from benchmarks.suites.gpu.models import Models
from benchmarks.suites.suite import Repeated
from deployments.doctor.demand import equal_share
from deployments.doctor.devices import visible_gpus
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.providers import Device

CORES_OF_A_REPLICA, CORES_BESIDE = 2, 4
BYTES_OF_A_REPLICA = 3 * 2**30
"""Of GPU memory: CUDA itself, BERT-base in fp16 twice, and the activations of its largest batches."""


@dataclass(frozen=True)
class Pace(Repeated):
    """How long and how often. The whole of both phases fits into minutes."""

    repetitions: int = 2
    window_s: float = 3.0
    warm_up_s: float = 1.5
    search_s: float = 1.6  # of each of the best two ways of the bare runtime; a quarter of it of each other one
    trial_s: float = 2.5
    trial_requests: int = 200
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    n_texts: int = 4096
    streams: tuple[int, ...] = STREAMS
    prompt_tokens: int = 128
    new_tokens: int = 64


QUICK = Pace(
    repetitions=1,
    window_s=0.5,
    warm_up_s=0.3,
    search_s=0.1,
    trial_s=0.5,
    trial_requests=10,
    batch_sizes=(1, 4),
    n_texts=64,
    streams=(1, 4),
    prompt_tokens=16,
    new_tokens=8,
)


@dataclass(frozen=True)
class Setting:
    """Where a phase runs: the device, its models, how long it measures, and the folder of its results."""

    device: Device
    models: Models
    pace: Pace
    folder: Path
    peers: bool = True

    @property
    def replicas(self) -> int:
        """Of an encoder: one on a CPU, as many as cores and memory feed on a GPU."""
        if self.device == "cpu":
            return 1
        memory = [gpu.total_bytes for gpu in visible_gpus()[:1] if gpu.total_bytes is not None]
        return replicas_on_gpu(len(os.sched_getaffinity(0)), *memory)

    def cluster(self, models: Mapping[str, Path], replicas: int, slots: SlotsConfig | None = None) -> dict[str, Any]:
        """The shipped cluster.yaml cut down to `models`, with `replicas` that share the device; on a GPU with its
        defaults for batches and memory.
        """
        of_each = dict.fromkeys(models, slots) if slots else None
        configuration = measured_cluster(models, threads=1, slots=of_each)
        for application in configuration["applications"]:
            (deployment,) = application["deployments"]
            deployment["num_replicas"] = replicas
            deployment["user_config"]["device"] = self.device
            if self.device != "cpu":
                deployment["user_config"].pop("batching", None)  # what is shipped is for CPUs
                deployment["ray_actor_options"] = {"num_cpus": 1, "num_gpus": equal_share(replicas)}
        return configuration


def replicas_on_gpu(cores: int, gpu_bytes: int | None = None) -> int:
    """How many replicas of an encoder share a GPU. HTTP and JSON of one run in one thread, tokenizing in others; the
    load generator, HAProxy and Ray take cores of their own.
    """
    fed = (cores - CORES_BESIDE) // CORES_OF_A_REPLICA
    return max(1, fed if gpu_bytes is None else min(fed, gpu_bytes // BYTES_OF_A_REPLICA))


class Journal:
    """The findings of a phase, in a file that is written anew after each of them."""

    def __init__(self, folder: Path, phase: str, load: Mapping[str, Any]) -> None:
        self._path = folder / f"{phase}.json"
        self._content: dict[str, Any] = {"load": dict(load), "figures": {}, "points": [], "raw": [], "peers": []}
        self._write()

    def note(self, **figures: float) -> None:
        """One more repetition of each of these figures."""
        for name, value in figures.items():
            self._content["figures"].setdefault(name, []).append(value)
        self._write()

    def compare(self, **figures: Sequence[float]) -> None:
        """Figures made of others: they take the place of those before."""
        self._content["figures"] |= {name: list(values) for name, values in figures.items()}
        self._write()

    def values(self, name: str) -> list[float]:
        """The repetitions of a figure so far."""
        return list(self._content["figures"].get(name, []))

    def keep(self, kind: str, *entries: Any) -> None:
        """Entries of `points`, `raw` or `peers` of the result; dataclasses become mappings."""
        self._content[kind] += [one if isinstance(one, dict) else asdict(one) for one in entries]
        self._write()

    def _write(self) -> None:
        unfinished = self._path.with_suffix(".unfinished")  # a phase may be cut off while it writes
        unfinished.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
        unfinished.rename(self._path)
