"""What Ray Serve's controller does otherwise in our clusters."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve._private import node_port_manager
from ray.serve._private.node_port_manager import PortAllocator

from deployments.cluster.worker_setup import keep_ports_as_long_as_haproxy
from deployments.ingress.haproxy import SETTINGS, WRAPPER_VARIABLE, tell
from deployments.ingress.lines import Settings


def test_the_port_of_a_replica_that_has_ended_is_free_after_the_last_haproxy_that_knows_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where requests have longer since a change of cluster.yaml: else an old process asks a replica of another."""
    now_s = 1000.0
    monkeypatch.setattr(node_port_manager, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(node_port_manager, "RAY_SERVE_PORT_QUARANTINE_S", 645.0)
    monkeypatch.setattr(PortAllocator, "release", PortAllocator.release)  # as it is now is put back
    monkeypatch.setenv(WRAPPER_VARIABLE, str(tmp_path / "haproxy"))
    Settings().write(tmp_path / SETTINGS)
    keep_ports_as_long_as_haproxy()
    ports = PortAllocator(30_000, 30_002, "HTTP", "node")

    ports.allocate("first")
    ports.release("first", 30_000)
    tell(tmp_path, (), {}, 2000)
    assert ports.allocate("second") == 30_001
    ports.release("second", 30_001)

    now_s += 646
    assert ports.allocate("third") == 30_000
    now_s += 1300
    with pytest.raises(node_port_manager.NoAvailablePortError):
        ports.allocate("fourth")
    now_s += 100
    assert ports.allocate("fourth") == 30_001
