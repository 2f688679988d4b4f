"""Devices: which execution providers compute here, NVIDIA's driver, GPUs and libraries."""

import os
from collections.abc import Collection, Iterator, Sequence
from typing import get_args

from deployments.doctor.finding import Finding, Level, gib
from pipelines.errors import ConfigurationError
from pipelines.runtime.nvidia.driver import Driver, Gpu, dotted
from pipelines.runtime.nvidia.libraries import libraries_of
from pipelines.runtime.probe import probe
from pipelines.runtime.providers import LIBRARIES, PROVIDERS, Device, library_file, preload

SECTION = "devices"
NO_DEVICES = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide every GPU."""


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that Ray counts on this machine: those that CUDA_VISIBLE_DEVICES leaves, which it names by index."""
    try:
        gpus = Driver.read().gpus
    except OSError:
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    if visible in NO_DEVICES:
        return ()
    names = visible.split(",")
    if all(name.strip().isdecimal() for name in names):
        return tuple(gpus[int(name)] for name in names if int(name) < len(gpus))
    return gpus[: len(names)]  # named by UUID, as parts of GPUs are


def devices(asked: Collection[Device]) -> Iterator[Finding]:
    """Findings about every device; one that is asked for and does not compute is an error."""
    for device in get_args(Device):
        yield _device(device, device in asked)
    try:
        driver = Driver.read()
    except OSError as error:
        yield Finding(SECTION, "driver", f"none of NVIDIA ({error})", "note")
    else:
        text = f"NVIDIA {driver.version}, for CUDA up to {dotted(driver.cuda)}"
        yield Finding(SECTION, "driver", text, facts={"version": driver.version, "cuda": dotted(driver.cuda)})
        yield from _gpus(driver.gpus)
    yield from _libraries()


def _device(device: Device, is_asked: bool) -> Finding:
    facts = {"providers": PROVIDERS[device]}
    try:
        probe(device)
    except ConfigurationError as error:
        level: Level = "error" if is_asked else "note"
        return Finding(SECTION, device, str(error).partition(", but ")[2] or str(error), level, facts=facts)
    return Finding(SECTION, device, f"computes ({', '.join(PROVIDERS[device])})", facts=facts)


def _gpus(gpus: Sequence[Gpu]) -> Iterator[Finding]:
    for index, gpu in enumerate(gpus):
        text = f"{gpu.name}, compute capability {dotted(gpu.compute_capability)}"
        if gpu.total_bytes is not None and gpu.free_bytes is not None:
            text += f", {gib(gpu.free_bytes)} free of {gib(gpu.total_bytes)}"
        facts = {
            "name": gpu.name,
            "compute_capability": dotted(gpu.compute_capability),
            "total_bytes": gpu.total_bytes,
            "free_bytes": gpu.free_bytes,
        }
        yield Finding(SECTION, f"gpu {index}", text, facts=facts)
    if len(visible_gpus()) < len(gpus):
        text = f"{os.environ['CUDA_VISIBLE_DEVICES']!r} hides {len(gpus) - len(visible_gpus())} of {len(gpus)} GPUs"
        yield Finding(SECTION, "CUDA_VISIBLE_DEVICES", text, "note")


def _libraries() -> Iterator[Finding]:
    try:
        preload()  # an execution provider takes the libraries that this finds
        found = list(libraries_of(map(library_file, LIBRARIES)))
    except ImportError:  # of onnxruntime, without which no device computes: that is an error of its own
        return
    for one in found:
        facts = {"soname": one.soname, "version": one.version, "path": str(one.path)}
        if one.problem is not None:
            yield Finding(SECTION, one.name, one.problem, "note", facts=facts)
        else:
            yield Finding(SECTION, one.name, f"{one.version or 'of no known version'}, {one.path}", facts=facts)
