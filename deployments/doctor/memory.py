"""Estimates of memory: what the replicas of a cluster.yaml take of the machine, and each of a GPU."""

from collections.abc import Iterator, Mapping, Sequence

from deployments.config import TaskConfig, task_of
from deployments.doctor.demand import Demand
from deployments.doctor.finding import CLUSTER, MIB, Finding, gib
from deployments.doctor.machine import Capacity
from deployments.gpu_memory import CONTEXT_BYTES, memory_limit
from pipelines.errors import ConfigurationError
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.memory import slot_bytes
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.nvidia.driver import Gpu
from pipelines.tasks import TASKS

PROCESS_BYTES = 250 * MIB
"""A replica's memory beside weights and KV cache, measured by `make measure`."""


def memory(
    tasks: Mapping[str, TaskConfig],
    found: Sequence[Demand],
    artifacts: Mapping[str, ModelArtifact],
    capacity: Capacity,
    gpus: Sequence[Gpu],
) -> Iterator[Finding]:
    """Estimates: main memory of the replicas that start first, and GPU memory of one replica of each task."""
    first = {one.application: one.first_replicas for one in found}
    shares = {one.application: one.num_gpus for one in found}
    smallest = min((gpu.total_bytes for gpu in gpus if gpu.total_bytes is not None), default=None)
    main, cache = 0, 0
    for task, artifact in artifacts.items():
        config, n = tasks[task], first.get(task, 1)
        main += n * (PROCESS_BYTES + _copies(config, task) * weights_bytes(artifact))
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
        yield Finding(CLUSTER, "memory of replicas", text, "ok" if fits else "warning", remedy, facts)


def cache_bytes(artifact: ModelArtifact, config: TaskConfig) -> int:
    """The KV cache of one replica once every slot is full, paused sequences included; 0 without slots."""
    slots = config.slots or SlotsConfig()
    paused = slots.slots if slots.max_paused is None else slots.max_paused
    return (slots.slots + paused) * (slot_bytes(artifact, slots.max_tokens) or 0)


def weights_bytes(artifact: ModelArtifact) -> int:
    """The size of an artifact's graphs."""
    return sum(digest.size for name, digest in artifact.manifest.files.items() if ".onnx" in name)


def _gpu_memory(task: str, config: TaskConfig, artifact: ModelArtifact, share: float, total_bytes: int) -> Finding:
    """What one replica takes of a GPU, against what it may take of it."""
    try:
        limit = memory_limit(config, share, total_bytes)
    except ConfigurationError as error:
        return Finding(CLUSTER, "gpu memory", f"{task}: {error}", "error")
    room = total_bytes - CONTEXT_BYTES if limit is None else limit
    # Sessions for captured shapes hold the weights a second time.
    captured = artifact.manifest.rows == "packed" and config.cuda_graphs
    needed = (2 if captured else 1) * weights_bytes(artifact) + cache_bytes(artifact, config)
    text = f"{task}: about {gib(needed)} for weights and KV cache; a replica may take {gib(room)}"
    facts = {"task": task, "estimated_bytes": needed, "limit_bytes": room}
    if needed > room:
        remedy = "raise num_gpus or gpu_mem_limit_bytes, or lower slots.slots or slots.max_tokens"
        return Finding(CLUSTER, "gpu memory", text, "warning", remedy, facts)
    return Finding(CLUSTER, "gpu memory", text, facts=facts)


def _copies(config: TaskConfig, task: str) -> int:
    """How often a replica holds its weights: batches that run at once share threads through a second session."""
    two = config.device == "cpu" and config.batching.concurrency > 1 and (config.threads or 1) > 1
    return 2 if two and not TASKS[task_of(task)].generates else 1
