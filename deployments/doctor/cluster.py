"""What a cluster.yaml asks of this machine, and whether it fits: ports, artifacts, CPUs, GPUs, memory."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.cluster.launch import Launch
from deployments.cluster.local_ray import RAY_METRICS_PORT
from deployments.cluster.ports import check_port, listeners
from deployments.cluster.ray_environment import METRICS_PORT
from deployments.config import TaskConfig, task_configs, task_of
from deployments.doctor.demand import Demand, cpus, demands, gpu_shares, own_cores
from deployments.doctor.finding import CLUSTER, Finding, gib
from deployments.doctor.gpu_shares import gpu_memory
from deployments.doctor.machine import Capacity
from deployments.doctor.memory import memory, weights_bytes
from deployments.ingress.access import OPEN_VARIABLE
from deployments.ingress.config import ConnectionLimits, IngressConfig
from pipelines.errors import SextetError
from pipelines.generation.open import open_stack
from pipelines.runtime.artifact import MANIFEST_NAME, ModelArtifact
from pipelines.runtime.nvidia.driver import Gpu
from pipelines.runtime.session_config import SessionConfig
from stores.address import HubAddress, UrlAddress, remote

GRPC_PORT = 9000  # Ray Serve's default
_STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""What fsspec needs beside itself, by scheme."""


@dataclass(frozen=True)
class Cluster:
    """A cluster.yaml that Ray Serve would take, its paths absolute."""

    launch: Launch
    content: dict[str, Any]
    tasks: Mapping[str, TaskConfig]
    connections: ConnectionLimits

    @classmethod
    def read(cls, path: Path) -> "Cluster":
        """Raises a SextetError, as `sextet serve` would before it starts anything."""
        is_open = os.environ.get(OPEN_VARIABLE) == "1"
        launch = Launch(path, None, None, lambda _line: None, open_to_everybody=is_open)
        content = launch.content()
        tasks, connections = task_configs(content), IngressConfig.of(content, path.parent).limits
        try:
            from deployments.cluster.rollout import validated
        except ImportError:
            pass  # Ray is missing, which is an error of its own
        else:
            validated(content)
        return cls(launch, content, tasks, connections)

    def findings(self, capacity: Capacity, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        """Everything about the file but its devices."""
        path = self.launch.cluster
        yield Finding(CLUSTER, "file", f"{path}, tasks: {len(self.tasks)}", facts={"path": str(path)})
        yield from self._ports()
        artifacts: dict[str, ModelArtifact] = {}
        for task, config in self.tasks.items():
            yield self._artifact(task, config, artifacts)
        found = demands(self.content)
        yield from cpus(found, capacity)
        yield from own_cores(self.tasks, found, capacity)
        yield from gpu_shares(found, len(gpus))
        yield from self._devices(found)
        yield from gpu_memory(self.tasks, found, artifacts, gpus)
        yield from memory(self.tasks, found, artifacts, capacity)

    def _ports(self) -> Iterator[Finding]:
        host, port = (self.content["http_options"][name] for name in ("host", "port"))
        facts = {"host": host, "port": port, "listeners": listeners(port) if isinstance(port, int) else []}
        try:
            check_port(host, port)
        except SextetError as error:
            yield Finding(CLUSTER, "port", str(error), "error", facts=facts)
        else:
            yield Finding(CLUSTER, "port", f"{port} of {host} is free", facts=facts)
            yield from self._ingress()
        grpc = self.content.get("grpc_options") or {}
        if grpc.get("grpc_servicer_functions"):  # without them, Ray Serve opens no port for gRPC
            yield _grpc_port(grpc.get("port", GRPC_PORT))
        for port in (RAY_METRICS_PORT, METRICS_PORT):
            if found := listeners(port):
                text = f"{port} is taken ({', '.join(found)}): `sextet serve` prints the port that it takes instead"
                yield Finding(CLUSTER, "metrics port", text, "note", facts={"port": port, "listeners": found})

    def _ingress(self) -> Iterator[Finding]:
        """What guards it, whether its files are there, and its port for gRPC."""
        try:
            ingress = self.launch.ingress(self.content)
        except SextetError as error:
            yield Finding(CLUSTER, "ingress", str(error), "error")
            return
        facts = {"tls": ingress.tls is not None, "keys": ingress.keys is not None}
        yield Finding(
            CLUSTER, "ingress", ", ".join(f"{'' if on else 'no '}{what}" for what, on in facts.items()), facts=facts
        )
        if ingress.grpc_port is not None:
            yield _grpc_port(ingress.grpc_port)

    def _artifact(self, task: str, config: TaskConfig, artifacts: dict[str, ModelArtifact]) -> Finding:
        """Opens it into `artifacts`, which takes as long as reading its files."""
        facts = {"task": task, "model": config.model, "device": config.device}
        if (address := remote(config.model)) is not None:
            missing = _missing_package(address)
            if missing is None:
                text = f"{config.model}, elsewhere: fetched and checked when it starts"
                return Finding(CLUSTER, task, text, "note", facts=facts)
            return Finding(CLUSTER, task, f"{config.model} needs {missing}", "error", f"pip install {missing}", facts)
        if config.source is not None and not os.path.exists(Path(config.model) / MANIFEST_NAME):
            text = f"{config.model} is to be built from {config.source.checkpoint}"
            return Finding(CLUSTER, task, text, "error", f"sextet export --all {self.launch.cluster}", facts)
        try:
            artifact = ModelArtifact.open(config.model, task=task_of(task), allow_unverified=config.allow_unverified)
            artifact.check_device(config.device)
            if config.adapters:
                open_stack(artifact, SessionConfig(config.device), config.adapter_folders)
        except SextetError as error:
            return Finding(CLUSTER, task, str(error), "error", facts=facts)
        artifacts[task] = artifact
        size, precision = weights_bytes(artifact), artifact.manifest.precision
        text = f"{config.model}, {precision}, {gib(size)}, on {config.device}"
        return Finding(CLUSTER, task, text, facts={**facts, "precision": precision, "bytes": size})

    def _devices(self, found: Sequence[Demand]) -> Iterator[Finding]:
        """Where what Ray is told does not match the device."""
        reserved = {one.application: one.num_gpus for one in found}
        for task, config in self.tasks.items():
            share = reserved.get(task, 0)
            if config.device != "cpu" and share == 0:
                text = f"{task} runs on {config.device}, and reserves no GPU"
                yield Finding(
                    CLUSTER, "num_gpus", text, "warning", "add num_gpus to its ray_actor_options", {"task": task}
                )
            elif config.device == "cpu" and share > 0:
                text = f"{task} has num_gpus {share:g}, and runs on the CPU"
                yield Finding(
                    CLUSTER, "num_gpus", text, "warning", "set its device, or leave num_gpus out", {"task": task}
                )


def _grpc_port(port: int) -> Finding:
    found = listeners(port)
    facts = {"port": port, "listeners": found}
    if found:
        text = f"{port} is taken ({', '.join(found)})"
        return Finding(CLUSTER, "grpc port", text, "error", "stop what is there, or choose another port", facts)
    return Finding(CLUSTER, "grpc port", f"{port} is free", facts=facts)


def _missing_package(address: HubAddress | UrlAddress) -> str | None:
    """The package that reads an address, where it is not installed."""
    if isinstance(address, HubAddress):
        names = ["huggingface_hub"]
    else:
        scheme = address.url.partition("://")[0]
        names = ["fsspec", *([_STORES[scheme]] if scheme in _STORES else [])]
    return next((name for name in names if importlib.util.find_spec(name) is None), None)
