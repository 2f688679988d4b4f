"""The environment of a cluster beside another one on the same machine."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from deployments.cluster.ray_environment import SPARE_PORTS, prepare
from deployments.ingress.haproxy import find_binary


def test_a_port_that_another_cluster_has_is_replaced_by_one_that_no_process_is_handed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {})
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # where another cluster really is there
            other.bind(("0.0.0.0", 8404))
            other.listen()

        prepare(tmp_path, find_binary())

        assert int(os.environ["RAY_SERVE_HAPROXY_STATS_PORT"]) in SPARE_PORTS
