"""`sextet doctor`: one page about this machine, and about what a cluster.yaml asks of it."""

from pathlib import Path

from deployments.doctor.cgroup import Cgroup
from deployments.doctor.cluster import Cluster
from deployments.doctor.devices import devices, visible_gpus
from deployments.doctor.finding import CLUSTER, Finding, Report
from deployments.doctor.machine import Capacity, machine
from deployments.doctor.software import software
from deployments.ingress.config import ConnectionLimits
from pipelines.errors import SextetError
from pipelines.runtime.providers import PROVIDERS, Device, unknown_device


def examine(path: Path | None, device: Device | None = None) -> Report:
    """Look at everything; starts nothing that lasts. Without `path`, only at the machine.

    `device` is asked for beside those of the file. Raises ConfigurationError for one that does not exist.
    """
    if device is not None and device not in PROVIDERS:
        raise unknown_device("--device", device)
    cluster, refusal = None, Finding(CLUSTER, "file", "none was looked at", "note", "sextet doctor cluster.yaml")
    if path is not None:
        try:
            cluster = Cluster.read(path)
        except SextetError as error:
            refusal = Finding(CLUSTER, "file", str(error), "error", facts={"path": str(path)})
    capacity = Capacity.read(Cgroup())
    connections = cluster.connections if cluster else ConnectionLimits()
    asked: set[Device] = {"cpu", device or "cpu"}
    if cluster is not None:
        asked |= {config.device for config in cluster.tasks.values()}
    return Report(
        [
            *machine(capacity, connections, path.absolute().parent if path else Path.cwd()),
            *software(),
            *devices(asked),
            *(cluster.findings(capacity, visible_gpus()) if cluster else [refusal]),
        ]
    )
