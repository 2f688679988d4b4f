"""The machine as this process may use it: cores, memory, instruction sets, open files, disks."""

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deployments.cluster.local_ray import FOLDERS, OBJECT_STORE_BYTES
from deployments.doctor.cgroup import Cgroup
from deployments.doctor.finding import GIB, MIB, Finding, Level, gib
from deployments.ingress.config import ConnectionLimits
from deployments.ingress.limits import max_connections
from stores.filesystem import cache_folder

SECTION = "machine"
# Flags of /proc/cpuinfo that decide how fast onnxruntime's kernels are, by what people call them.
_X86: dict[str, tuple[str, ...]] = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16",),
    "amx": ("amx_int8", "amx_bf16"),
}
_ARM: dict[str, tuple[str, ...]] = {
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
}
_FULL = 0.95
"""From this share of a disk on, Ray puts no more objects on it."""
_SCARCE, _TOO_SMALL = GIB, 100 * MIB


@dataclass(frozen=True)
class Capacity:
    """What replicas on this machine can have. `ray_cpus` is what Ray counts and hands out; `cores` what a cgroup or a
    set of allowed cores leaves of it. Memory in bytes; `memory_bytes` is all of it, used or not.
    """

    cores: float
    ray_cpus: float
    memory_bytes: int
    available_bytes: int

    @classmethod
    def read(cls, cgroup: Cgroup) -> "Capacity":
        quota = cgroup.cpus()
        cores = min(len(os.sched_getaffinity(0)), quota or float("inf"))
        total, available = _memory(cgroup)
        return cls(cores, _ray_cpus(quota), total, available)


def machine(capacity: Capacity, connections: ConnectionLimits, folder: Path) -> Iterator[Finding]:
    """Findings about the machine; `folder` is cluster.yaml's, below which artifacts lie."""
    flags = cpu_flags()
    yield Finding(SECTION, "system", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield _cores(capacity)
    yield _ram(capacity)
    yield instructions(flags, platform.machine())
    yield _open_files(connections)
    yield from disks({"artifacts": folder, "caches": cache_folder(), "sessions of Ray": FOLDERS})
    yield from _shared_memory()


def cpu_flags() -> set[str]:
    """Instruction sets of the first core, as the kernel calls them."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return set(value.split())
    return set()


def instructions(flags: set[str], architecture: str) -> Finding:
    """What matters for fp32 and int8 kernels on this processor."""
    known = _X86 if architecture in ("x86_64", "AMD64") else _ARM
    there = [name for name, any_of in known.items() if flags & set(any_of)]
    text = f"{' '.join(there) or 'none that matters'}{_without(known, there)}"
    facts = {"present": there}
    if known is _X86 and "avx2" not in there:
        return Finding(
            SECTION, "instructions", text, "warning", "models run several times slower than with avx2", facts
        )
    if known is _X86 and "vnni" not in there:
        remedy = "products of int8 may saturate: export int8 artifacts on this machine, or use fp32"
        return Finding(SECTION, "instructions", text, "warning", remedy, facts)
    return Finding(SECTION, "instructions", text, facts=facts)


def disks(places: dict[str, Path]) -> Iterator[Finding]:
    """One finding for each file system, with what is kept on it."""
    kept: dict[int, list[str]] = {}
    folders: dict[int, Path] = {}
    for what, path in places.items():
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
        kept.setdefault(there.stat().st_dev, []).append(f"{what} in {path}")
        folders.setdefault(there.stat().st_dev, there)
        if not os.access(there, os.W_OK):
            yield Finding(SECTION, "disk", f"{there} cannot be written ({what})", "warning", "allow it, or move them")
    for device, folder in folders.items():
        total, _, free = shutil.disk_usage(folder)
        yield disk(total, free, kept[device])


def disk(total: int, free: int, holds: list[str]) -> Finding:
    """One file system, in bytes."""
    facts = {"total_bytes": total, "free_bytes": free, "holds": holds}
    text = f"{gib(free)} free of {gib(total)}: {', '.join(holds)}"
    if free < _TOO_SMALL:
        remedy = "free some space: Ray does not start, and no artifact can be fetched"
        return Finding(SECTION, "disk", text, "error", remedy, facts)
    if free < _SCARCE or free < (1 - _FULL) * total:
        remedy = "free some space: above 95% Ray puts no objects on a disk"
        return Finding(SECTION, "disk", text, "warning", remedy, facts)
    return Finding(SECTION, "disk", text, facts=facts)


def _cores(capacity: Capacity) -> Finding:
    present = os.cpu_count() or 1
    text = f"{present} ({_model_name()})"
    facts = {"present": present, "usable": capacity.cores, "counted_by_ray": capacity.ray_cpus}
    if capacity.cores < present:
        text += f", of which this process may use {capacity.cores:g}"
    if capacity.ray_cpus > capacity.cores:
        remedy = f"Ray counts {capacity.ray_cpus:g}, so replicas share cores: lift the limit, or let them reserve more"
        return Finding(SECTION, "cores", text, "warning", remedy, facts)
    return Finding(SECTION, "cores", text, facts=facts)


def _ram(capacity: Capacity) -> Finding:
    text = f"{gib(capacity.memory_bytes)}, {gib(capacity.available_bytes)} available"
    facts = {"total_bytes": capacity.memory_bytes, "available_bytes": capacity.available_bytes}
    return Finding(SECTION, "memory", text, facts=facts)


def _open_files(connections: ConnectionLimits) -> Finding:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    accepted, wanted = max_connections(connections), connections.max_connections
    unlimited = limit == resource.RLIM_INFINITY
    text = f"{'unlimited' if unlimited else f'{limit:,}'}, for {accepted:,} connections at once"
    facts = {"limit": None if unlimited else limit, "connections": accepted, "wanted_connections": wanted}
    if accepted < wanted:
        level: Level = "warning" if accepted < wanted / 2 else "note"
        remedy = f"raise the hard limit (ulimit -Hn) for the {wanted:,} that the ingress may hold"
        return Finding(SECTION, "open files", text, level, remedy, facts)
    return Finding(SECTION, "open files", text, facts=facts)


def _shared_memory() -> Iterator[Finding]:
    with suppress(OSError):
        total, _, free = shutil.disk_usage("/dev/shm")
        if free < OBJECT_STORE_BYTES:
            text = f"{gib(free)} free of {gib(total)}"
            remedy = "Ray keeps objects on the disk instead: run the container with --shm-size=256m"
            yield Finding(SECTION, "/dev/shm", text, "warning", remedy, {"total_bytes": total, "free_bytes": free})


def _memory(cgroup: Cgroup) -> tuple[int, int]:
    """All memory and what is available of it, in bytes, within the cgroup's limit."""
    sizes = {}
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * 1024
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    for limit, used in cgroup.memory():
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def _ray_cpus(quota: float | None) -> float:
    """What Ray counts: all cores, or a quota of the outermost cgroup, whatever cores are allowed."""
    try:
        from ray._private.utils import get_num_cpus  # no public function tells before Ray runs
    except ImportError:
        return float(int(min(os.cpu_count() or 1, quota or float("inf"))))
    return float(get_num_cpus(override_docker_cpu_warning=True))


def _model_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.machine()


def _without(known: dict[str, tuple[str, ...]], there: list[str]) -> str:
    missing = [name for name in known if name not in there]
    return f" (without {' '.join(missing)})" if missing else ""
