"""Estimates of main memory: what the replicas of a cluster.yaml take of the machine."""

from collections.abc import Iterator, Mapping, Sequence

from deployments.config import TaskConfig, task_of
from deployments.doctor.demand import Demand
from deployments.doctor.finding import CLUSTER, MIB, Finding, gib
from deployments.doctor.machine import Capacity
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.memory import slot_bytes
from pipelines.runtime.artifact import ModelArtifact
from pipelines.tasks import TASKS

PROCESS_BYTES = 250 * MIB
"""A replica's memory beside weights and KV cache, measured by `make measure`."""


def memory(
    tasks: Mapping[str, TaskConfig],
    found: Sequence[Demand],
    artifacts: Mapping[str, ModelArtifact],
    capacity: Capacity,
) -> Iterator[Finding]:
    """That of the replicas that start first."""
    first = {one.application: one.first_replicas for one in found}
    main, cache = 0, 0
    for task, artifact in artifacts.items():
        config, n = tasks[task], first.get(task, 1)
        main += n * (PROCESS_BYTES + _copies(config, task) * weights_bytes(artifact))
        cache += n * _cache_in_main_memory(config, artifact)
    if main:
        later = f", and up to {gib(cache)} of KV cache as slots fill" if cache else ""
        text = f"about {gib(main)}{later}; the machine has {gib(capacity.memory_bytes)}"
        facts = {"estimated_bytes": main, "cache_bytes": cache, "total_bytes": capacity.memory_bytes}
        fits = main + cache <= capacity.memory_bytes
        remedy = "" if fits else "lower slots.slots, slots.max_tokens or min_replicas"
        yield Finding(CLUSTER, "memory of replicas", text, "ok" if fits else "warning", remedy, facts)


def replica_bytes(config: TaskConfig, task: str, artifact: ModelArtifact) -> int:
    """What one replica takes at most."""
    return PROCESS_BYTES + _copies(config, task) * weights_bytes(artifact) + _cache_in_main_memory(config, artifact)


def cache_bytes(artifact: ModelArtifact, config: TaskConfig) -> tuple[int, int]:
    """The KV cache of one replica, once every slot is full, and that of paused sequences; 0 without slots.

    Slots lie on the device, paused sequences in main memory.
    """
    slots = config.slots or SlotsConfig()
    paused = slots.slots if slots.max_paused is None else slots.max_paused
    each = slot_bytes(artifact, slots.max_tokens) or 0
    return slots.slots * each, paused * each


def weights_bytes(artifact: ModelArtifact) -> int:
    """The size of an artifact's graphs."""
    return sum(digest.size for name, digest in artifact.manifest.files.items() if ".onnx" in name)


def _cache_in_main_memory(config: TaskConfig, artifact: ModelArtifact) -> int:
    in_slots, paused = cache_bytes(artifact, config)
    return paused + (in_slots if config.device == "cpu" else 0)


def _copies(config: TaskConfig, task: str) -> int:
    """How often a replica holds its weights: batches that run at once share threads through a second session."""
    two = config.device == "cpu" and config.batching.concurrency > 1 and (config.threads or 1) > 1
    return 2 if two and not TASKS[task_of(task)].generates else 1
