"""What a cluster.yaml asks of this machine, and whether it fits: ports, artifacts, CPUs, GPUs, memory."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.cluster.launch import Launch
from deployments.cluster.local_ray import METRICS_PORT
from deployments.cluster.ports import check_port, listeners
from deployments.config import TaskConfig, task_configs
from deployments.doctor.demand import Demand, demands, shares, unplaced
from deployments.doctor.finding import MIB, Finding, gib
from deployments.doctor.machine import Capacity
from deployments.gpu_memory import CONTEXT_BYTES, memory_limit
from deployments.ingress.config import ConnectionLimits, IngressConfig
from pipelines.errors import ConfigurationError, SextetError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.memory import slot_bytes
from pipelines.runtime.artifact import MANIFEST_NAME, ModelArtifact
from pipelines.runtime.nvidia.driver import Gpu
from pipelines.tasks import TASKS
from stores.address import HubAddress, UrlAddress, remote

SECTION = "cluster.yaml"
PROCESS_BYTES = 250 * MIB
"""A replica's memory beside weights and KV cache, measured by `make measure`."""
_STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""What fsspec needs beside itself, by scheme."""


@dataclass(frozen=True)
class Cluster:
    """A cluster.yaml that Ray Serve would take, its paths absolute."""

    path: Path
    content: Mapping[str, Any]
    tasks: Mapping[str, TaskConfig]
    connections: ConnectionLimits

    @classmethod
    def read(cls, path: Path) -> "Cluster":
        """Raises a SextetError, as `sextet serve` would before it starts anything."""
        content = Launch(path, None, None, lambda _line: None).content()
        tasks, connections = task_configs(content), IngressConfig.of(content, path.parent).limits
        try:
            from deployments.cluster.rollout import validated
        except ImportError:
            pass  # Ray is missing, which is an error of its own
        else:
            validated(content)
        return cls(path, content, tasks, connections)

    def findings(self, capacity: Capacity, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        """Everything about the file but its devices."""
        yield Finding(SECTION, "file", f"{self.path}, tasks: {len(self.tasks)}", facts={"path": str(self.path)})
        yield from self._ports()
        artifacts: dict[str, ModelArtifact] = {}
        for task, config in self.tasks.items():
            yield self._artifact(task, config, artifacts)
        found = demands(self.content)
        yield from cpus(found, capacity)
        yield from gpu_shares(found, len(gpus))
        yield from self._devices(found)
        yield from self._memory(found, artifacts, capacity, gpus)

    def _ports(self) -> Iterator[Finding]:
        host, port = (self.content["http_options"][name] for name in ("host", "port"))
        facts = {"host": host, "port": port, "listeners": listeners(port) if isinstance(port, int) else []}
        try:
            check_port(host, port)
        except SextetError as error:
            yield Finding(SECTION, "port", str(error), "error", facts=facts)
        else:
            yield Finding(SECTION, "port", f"{port} of {host} is free", facts=facts)
        if found := listeners(METRICS_PORT):
            text = f"{METRICS_PORT} is taken ({', '.join(found)}): `sextet serve` prints the port that it takes instead"
            yield Finding(SECTION, "metrics port", text, "note", facts={"port": METRICS_PORT, "listeners": found})

    def _artifact(self, task: str, config: TaskConfig, artifacts: dict[str, ModelArtifact]) -> Finding:
        """Opens it into `artifacts`, which takes as long as reading its files."""
        facts = {"task": task, "model": config.model, "device": config.device}
        if (address := remote(config.model)) is not None:
            missing = _missing_package(address)
            if missing is None:
                text = f"{config.model}, elsewhere: fetched and checked when it starts"
                return Finding(SECTION, task, text, "note", facts=facts)
            return Finding(SECTION, task, f"{config.model} needs {missing}", "error", f"pip install {missing}", facts)
        if config.source is not None and not (Path(config.model) / MANIFEST_NAME).exists():
            text = f"{config.model} is to be built from {config.source.checkpoint}"
            return Finding(SECTION, task, text, "error", f"sextet export --all {self.path}", facts)
        try:
            artifact = ModelArtifact.open(config.model, task=task, allow_unverified=config.allow_unverified)
            artifact.check_device(config.device)
        except SextetError as error:
            return Finding(SECTION, task, str(error), "error", facts=facts)
        artifacts[task] = artifact
        size, precision = _weights(artifact), artifact.manifest.precision
        text = f"{config.model}, {precision}, {gib(size)}, on {config.device}"
        return Finding(SECTION, task, text, facts={**facts, "precision": precision, "bytes": size})

    def _devices(self, found: Sequence[Demand]) -> Iterator[Finding]:
        """Where what Ray is told does not match the device."""
        reserved = {one.application: one.num_gpus for one in found}
        for task, config in self.tasks.items():
            share = reserved.get(task, 0)
            if config.device != "cpu" and share == 0:
                text = f"{task} runs on {config.device}, and reserves no GPU"
                yield Finding(SECTION, "num_gpus", text, "warning", "add num_gpus to its ray_actor_options")
            elif config.device == "cpu" and share > 0:
                text = f"{task} has num_gpus {share:g}, and runs on the CPU"
                yield Finding(SECTION, "num_gpus", text, "warning", "set its device, or leave num_gpus out")

    def _memory(
        self, found: Sequence[Demand], artifacts: Mapping[str, ModelArtifact], capacity: Capacity, gpus: Sequence[Gpu]
    ) -> Iterator[Finding]:
        """Estimates: main memory of the replicas that start first, and GPU memory of one replica of each task."""
        first = {one.application: one.first_replicas for one in found}
        shares = {one.application: one.num_gpus for one in found}
        smallest = min((gpu.total_bytes for gpu in gpus if gpu.total_bytes is not None), default=None)
        main, cache = 0, 0
        for task, artifact in artifacts.items():
            config, n = self.tasks[task], first.get(task, 1)
            main += n * (PROCESS_BYTES + _copies(config, task) * _weights(artifact))
            if config.device == "cpu":
                cache += n * cache_bytes(artifact, config)
            elif smallest is not None:
                yield _gpu_memory(task, config, artifact, shares.get(task, 0.0), smallest)
        if main:
            later = f", and up to {gib(cache)} of KV cache as slots fill" if cache else ""
            text = f"about {gib(main)}{later}; the machine has {gib(capacity.memory_bytes)}"
            facts = {"estimated_bytes": main, "cache_bytes": cache, "total_bytes": capacity.memory_bytes}
            fits = main + cache <= capacity.memory_bytes
            remedy = "" if fits else "lower slots.slots, slots.max_tokens or min_replicas"
            yield Finding(SECTION, "memory of replicas", text, "ok" if fits else "warning", remedy, facts)


def cpus(found: Sequence[Demand], capacity: Capacity) -> Iterator[Finding]:
    """Whether the replicas that start first find CPUs, and those that load adds."""
    least = sum(one.first_replicas * one.num_cpus for one in found)
    most = sum(max(one.max_replicas, one.first_replicas) * one.num_cpus for one in found)
    facts = {"first_replicas": least, "all_replicas": most, "counted_by_ray": capacity.ray_cpus}
    text = f"{least:g} reserved by the replicas that start, up to {most:g} under load; Ray counts {capacity.ray_cpus:g}"
    largest = max((one.num_cpus for one in found), default=0)
    if least > capacity.ray_cpus + 1e-9 or largest > capacity.ray_cpus:
        remedy = "lower num_cpus or min_replicas, or add nodes: some replicas would wait for ever"
        yield Finding(SECTION, "num_cpus", text, "error", remedy, facts)
    elif most > capacity.ray_cpus + 1e-9:
        yield Finding(SECTION, "num_cpus", text, "note", "here they will not all run at once", facts)
    else:
        yield Finding(SECTION, "num_cpus", text, facts=facts)


def gpu_shares(found: Sequence[Demand], gpus: int) -> Iterator[Finding]:
    """Whether the replicas that start first find GPUs; nothing where none asks for one."""
    sizes = list(shares(found))
    if not sizes:
        return
    text = f"{sum(sizes):g} reserved by the replicas that start; Ray counts {gpus}"
    facts = {"first_replicas": sum(sizes), "counted_by_ray": gpus}
    if left := unplaced(sizes, gpus):
        remedy = f"lower num_gpus or min_replicas, or add nodes; replicas that would wait for ever: {len(left)}"
        yield Finding(SECTION, "num_gpus", text, "error", remedy, facts)
    else:
        yield Finding(SECTION, "num_gpus", text, facts=facts)


def cache_bytes(artifact: ModelArtifact, config: TaskConfig) -> int:
    """The KV cache of one replica once every slot is full, paused sequences included; 0 without slots."""
    slots = config.slots or SlotsConfig()
    paused = slots.slots if slots.max_paused is None else slots.max_paused
    return (slots.slots + paused) * (slot_bytes(artifact, slots.max_tokens) or 0)


def _gpu_memory(task: str, config: TaskConfig, artifact: ModelArtifact, share: float, total_bytes: int) -> Finding:
    """What one replica takes of a GPU, against what it may take of it."""
    try:
        limit = memory_limit(config, share, total_bytes)
    except ConfigurationError as error:
        return Finding(SECTION, "gpu memory", f"{task}: {error}", "error")
    room = total_bytes - CONTEXT_BYTES if limit is None else limit
    needed = _weights(artifact) + cache_bytes(artifact, config)
    text = f"{task}: about {gib(needed)} for weights and KV cache; a replica may take {gib(room)}"
    facts = {"task": task, "estimated_bytes": needed, "limit_bytes": room}
    if needed > room:
        remedy = "raise num_gpus or gpu_mem_limit_bytes, or lower slots.slots or slots.max_tokens"
        return Finding(SECTION, "gpu memory", text, "warning", remedy, facts)
    return Finding(SECTION, "gpu memory", text, facts=facts)


def _weights(artifact: ModelArtifact) -> int:
    return sum(digest.size for name, digest in artifact.manifest.files.items() if ".onnx" in name)


def _copies(config: TaskConfig, task: str) -> int:
    """How often a replica holds its weights: batches that run at once share threads through a second session."""
    two = config.device == "cpu" and config.batching.concurrency > 1 and (config.threads or 1) > 1
    return 2 if two and not TASKS[task].generates else 1


def _missing_package(address: HubAddress | UrlAddress) -> str | None:
    """The package that reads an address, where it is not installed."""
    if isinstance(address, HubAddress):
        names = ["huggingface_hub"]
    else:
        scheme = address.url.partition("://")[0]
        names = ["fsspec", *([_STORES[scheme]] if scheme in _STORES else [])]
    return next((name for name in names if importlib.util.find_spec(name) is None), None)
