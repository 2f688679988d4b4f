"""Estimates of GPU memory: what a replica takes and may take, and what all replicas on one GPU ask of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deployments.config import TaskConfig
from deployments.doctor.demand import Demand, fitting_replicas, placed
from deployments.doctor.finding import CLUSTER, Finding, gib
from deployments.doctor.memory import cache_bytes, weights_bytes
from deployments.gpu_memory import CONTEXT_BYTES, memory_limit
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.nvidia.driver import Gpu


@dataclass(frozen=True)
class GpuDemand:
    """One task on a GPU: what its first replicas reserve, and the bytes that each of them takes.

    `needed_bytes` are its weights and its KV cache. `asked_bytes` is what it may come to: its bound where the file sets
    one, else what it needs; with CUDA's own memory.
    """

    task: str
    demand: Demand
    needed_bytes: int
    asked_bytes: int

    @classmethod
    def of(cls, task: str, config: TaskConfig, artifact: ModelArtifact, demand: Demand) -> "GpuDemand":
        # Sessions for captured shapes hold the weights a second time.
        captured = artifact.manifest.rows == "packed" and config.cuda_graphs
        in_slots, _ = cache_bytes(artifact, config)
        needed = (2 if captured else 1) * weights_bytes(artifact) + in_slots
        bound = needed if config.gpu_mem_limit_bytes is None else config.gpu_mem_limit_bytes
        return cls(task, demand, needed, bound + CONTEXT_BYTES)


def gpu_memory(
    tasks: Mapping[str, TaskConfig],
    found: Sequence[Demand],
    artifacts: Mapping[str, ModelArtifact],
    gpus: Sequence[Gpu],
) -> Iterator[Finding]:
    """Nothing where no task runs on a GPU, or no GPU says how much memory it has."""
    totals = [gpu.total_bytes for gpu in gpus]
    if not (known := [total for total in totals if total is not None]):
        return
    reserved = {one.application: one for one in found}
    on_gpus = [
        GpuDemand.of(task, tasks[task], artifact, reserved.get(task, Demand(task, task, 1, 1)))
        for task, artifact in artifacts.items()
        if tasks[task].device != "cpu"
    ]
    for one in on_gpus:
        yield _of_one(one, tasks[one.task], min(known))
    yield from _together(on_gpus, totals)


def _of_one(one: GpuDemand, config: TaskConfig, total_bytes: int) -> Finding:
    """What one replica takes of a GPU, against what it may take of it."""
    try:
        limit = memory_limit(config, one.demand.num_gpus, total_bytes)
    except ConfigurationError as error:
        return Finding(CLUSTER, "gpu memory", f"{one.task}: {error}", "error")
    room = total_bytes - CONTEXT_BYTES if limit is None else limit
    text = f"{one.task}: about {gib(one.needed_bytes)} for weights and KV cache; a replica may take {gib(room)}"
    facts = {"task": one.task, "estimated_bytes": one.needed_bytes, "limit_bytes": room}
    if one.needed_bytes > room:
        remedy = "raise num_gpus or gpu_mem_limit_bytes, or lower slots.slots or slots.max_tokens"
        return Finding(CLUSTER, "gpu memory", text, "warning", remedy, facts)
    return Finding(CLUSTER, "gpu memory", text, facts=facts)


def _together(some: Sequence[GpuDemand], totals: Sequence[int | None]) -> Iterator[Finding]:
    """What the replicas that start first ask of each GPU that several share. CUDA gives those that reserve none the
    first one.
    """
    each = [one for one in some for _ in range(fitting_replicas(one.demand, len(totals)))]
    places = placed([one.demand.num_gpus for one in each], len(totals))
    for number, total in enumerate(totals):
        there = [
            one
            for one, place in zip(each, places, strict=True)
            if number in (place if one.demand.num_gpus > 0 else [0])
        ]
        if len(there) < 2 or total is None:
            continue
        asked = sum(one.asked_bytes for one in there)
        counts = {one.task: sum(other.task == one.task for other in there) for one in there}
        replicas = ", ".join(f"{n} of {task}" for task, n in counts.items())
        text = f"about {gib(asked)} asked by its {len(there)} replicas ({replicas}); it has {gib(total)}"
        facts = {"gpu": number, "replicas": counts, "estimated_bytes": asked, "total_bytes": total}
        if asked > total:
            remedy = "raise num_gpus, or lower gpu_mem_limit_bytes, slots.slots or slots.max_tokens"
            yield Finding(CLUSTER, f"memory of gpu {number}", text, "warning", remedy, facts)
        else:
            yield Finding(CLUSTER, f"memory of gpu {number}", text, facts=facts)
