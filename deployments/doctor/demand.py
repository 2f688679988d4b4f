"""What a cluster.yaml asks of Ray, replicas and what each reserves, and whether this machine has it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.config import TaskConfig
from deployments.doctor.finding import CLUSTER, Finding
from deployments.doctor.machine import Capacity

AUTO_REPLICAS = (1, 100)
"""What Ray Serve makes of `num_replicas: auto`."""
UNITS = 10_000
"""Of a GPU: Ray counts in these, and rounds a share to the nearest. Six replicas of a sixth are more than a GPU."""


@dataclass(frozen=True)
class Demand:
    """One deployment: how many replicas start, how many there may be, and what one of them reserves."""

    application: str
    deployment: str
    first_replicas: int
    max_replicas: int
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    @classmethod
    def of(cls, application: str, given: Mapping[str, Any]) -> "Demand":
        """As Ray Serve reads a deployment of its config file, which was checked before."""
        first, most = _replicas(given)
        bundles = given.get("placement_group_bundles") or []
        options = given.get("ray_actor_options") or {}
        cpus, gpus = options.get("num_cpus"), options.get("num_gpus")
        if bundles:
            cpus, gpus = (sum(one.get(kind, 0) for one in bundles) for kind in ("CPU", "GPU"))
        reserved = (1.0 if cpus is None else float(cpus), float(gpus or 0))
        return cls(application, str(given.get("name")), first, most, *reserved)


def demands(content: Mapping[str, Any]) -> list[Demand]:
    """Those of each deployment that the file lists; an application that lists none has one replica of one CPU."""
    found = []
    for application in content["applications"]:
        name = str(application.get("name") or "default")
        listed = application.get("deployments") or [{"name": name}]
        found += [Demand.of(name, deployment) for deployment in listed]
    return found


def cpus(found: Sequence[Demand], capacity: Capacity) -> Iterator[Finding]:
    """Whether the replicas that start first find CPUs, and those that load adds."""
    least = sum(one.first_replicas * one.num_cpus for one in found)
    most = sum(max(one.max_replicas, one.first_replicas) * one.num_cpus for one in found)
    facts = {"first_replicas": least, "all_replicas": most, "counted_by_ray": capacity.ray_cpus}
    text = f"{least:g} reserved by the replicas that start, up to {most:g} under load; Ray counts {capacity.ray_cpus:g}"
    largest = max((one.num_cpus for one in found), default=0)
    if least > capacity.ray_cpus + 1e-9 or largest > capacity.ray_cpus:
        remedy = "lower num_cpus or min_replicas, or add nodes: some replicas would wait for ever"
        yield Finding(CLUSTER, "num_cpus", text, "error", remedy, facts)
    elif most > capacity.ray_cpus + 1e-9:
        yield Finding(CLUSTER, "num_cpus", text, "note", "here they will not all run at once", facts)
    else:
        yield Finding(CLUSTER, "num_cpus", text, facts=facts)


def own_cores(tasks: Mapping[str, TaskConfig], found: Sequence[Demand], capacity: Capacity) -> Iterator[Finding]:
    """Whether the replicas that start first find cores of their own; nothing where none asks for them."""
    pinned = [one for one in found if one.application in tasks and tasks[one.application].pin_cores]
    if not pinned:
        return
    wanted = sum(one.first_replicas * (tasks[one.application].threads or max(1, int(one.num_cpus))) for one in pinned)
    facts = {"wanted": wanted, "usable": capacity.cores}
    text = f"{wanted} wanted by the replicas that start; this process may use {capacity.cores:g}"
    if wanted > capacity.cores:
        yield Finding(CLUSTER, "pin_cores", text, "warning", "lower threads: some replicas would share cores", facts)
    else:
        yield Finding(CLUSTER, "pin_cores", text, facts=facts)


def gpu_shares(found: Sequence[Demand], gpus: int) -> Iterator[Finding]:
    """Whether the replicas that start first find GPUs; nothing where none asks for one."""
    asking = [one for one in found if one.num_gpus > 0 and one.first_replicas > 0]
    if not asking:
        return
    reserved = sum(one.num_gpus * one.first_replicas for one in asking)
    text = f"{reserved:g} reserved by the replicas that start; Ray counts {gpus}"
    facts = {"first_replicas": reserved, "counted_by_ray": gpus}
    tried = [(one, fitting_replicas(one, gpus)) for one in asking]
    left = sum(one.first_replicas - n for one, n in tried)
    left += len(unplaced([size for one, n in tried for size in [one.num_gpus] * n], gpus))
    if left:
        remedy = f"lower num_gpus or min_replicas, or add nodes; replicas that would wait for ever: {left}"
        yield Finding(CLUSTER, "num_gpus", text, "error", remedy, facts)
    else:
        yield Finding(CLUSTER, "num_gpus", text, facts=facts)


def unplaced(sizes: Sequence[float], gpus: int) -> list[float]:
    """The shares of GPUs that find no place, largest first."""
    return sorted((size for size, place in zip(sizes, placed(sizes, gpus), strict=True) if not place), reverse=True)


def placed(sizes: Sequence[float], gpus: int) -> list[list[int]]:
    """The numbers of the GPUs that each share lies on: one for a share below 1, whole GPUs for a larger one, none where
    there is no room.

    Largest first packs densely; Ray, which places in its own order, may find no place where this does.
    """
    free = [UNITS] * gpus
    places: list[list[int]] = [[] for _ in sizes]
    for number in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        size = sizes[number]
        of_each, needed = (_units(size), 1) if size < 1 else (UNITS, round(size))
        fitting = [index for index, room in enumerate(free) if room >= of_each]
        if len(fitting) < needed:
            continue
        places[number] = sorted(fitting, key=lambda index: free[index])[:needed]  # the fullest first
        for index in places[number]:
            free[index] -= of_each
    return places


def equal_share(replicas: int) -> float:
    """The largest share of a GPU that so many replicas can each have."""
    return UNITS // replicas / UNITS


def fitting_replicas(demand: Demand, gpus: int) -> int:
    """How many of the replicas that start first fit by themselves: a typing error of many replicas costs nothing."""
    return min(demand.first_replicas, _most(demand.num_gpus, gpus))


def _most(share: float, gpus: int) -> int:
    """Replicas with this share that `gpus` may have room for, at most."""
    if share >= 1:
        return gpus if share <= gpus else 0
    return gpus * (UNITS // _units(share))


def _units(share: float) -> int:
    """A share below 1 as Ray counts it."""
    return max(1, int(share * UNITS + 0.5))


def _replicas(given: Mapping[str, Any]) -> tuple[int, int]:
    """How many start, and how many there may be."""
    fixed, autoscaling = given.get("num_replicas"), given.get("autoscaling_config")
    if autoscaling is None and fixed == "auto":
        return AUTO_REPLICAS
    if autoscaling is None:
        return (1, 1) if fixed is None else (int(fixed), int(fixed))
    least, most = (autoscaling.get(name) for name in ("min_replicas", "max_replicas"))
    least = 1 if least is None else int(least)
    first = autoscaling.get("initial_replicas")
    return least if first is None else int(first), int(most or max(1, least))
