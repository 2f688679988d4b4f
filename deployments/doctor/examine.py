"""`sextet doctor`: one page about this machine, and about what a cluster.yaml asks of it."""

from pathlib import Path

from deployments.doctor.cgroup import Cgroup
from deployments.doctor.cluster import SECTION, Cluster
from deployments.doctor.devices import devices, visible_gpus
from deployments.doctor.finding import Finding, Report
from deployments.doctor.machine import Capacity, machine
from deployments.doctor.software import software
from deployments.ingress.config import ConnectionLimits
from pipelines.errors import SextetError
from pipelines.runtime.providers import Device


def examine(path: Path | None) -> Report:
    """Look at everything; starts nothing that lasts. Without `path`, only at the machine."""
    cluster, refusal = None, Finding(SECTION, "file", "none was named, and there is no cluster.yaml here", "note")
    if path is not None:
        try:
            cluster = Cluster.read(path)
        except SextetError as error:
            refusal = Finding(SECTION, "file", str(error), "error", facts={"path": str(path)})
    capacity = Capacity.read(Cgroup())
    connections = cluster.connections if cluster else ConnectionLimits()
    asked: set[Device] = {"cpu"}
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
