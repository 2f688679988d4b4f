"""A port that the ingress cannot have is one line, which names who has it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.cluster.ports import check_port, listeners
from pipelines.errors import ConfigurationError


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_that_is_taken_names_the_process_that_listens(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as taken:
        try:
            taken.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        port = taken.getsockname()[1]
        assert listeners(port) == [], "it is bound, and nobody listens"
        taken.listen()
        me = f"{Path('/proc/self/comm').read_text().strip()}, pid {os.getpid()}"
        assert listeners(port) == [me]
        with pytest.raises(ConfigurationError) as caught:
            check_port(host, port)
        assert str(caught.value) == (
            f"cannot listen on {host} port {port} (Address already in use); "
            f"stop what is there ({me}), or choose another with --port"
        )
    check_port(host, port)
    assert listeners(port) == []


def test_another_process_is_named_too() -> None:
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        (found,) = listeners(int(process.stdout.readline()))
        assert found.endswith(f", pid {process.pid}")
        process.communicate("\n")


@pytest.mark.parametrize(
    ("host", "port", "line"),
    [
        (None, 8000, "http_options.host is None; allowed: an address"),
        ("127.0.0.1", "8000", "http_options.port is '8000'; allowed: 1 to 65535"),
        ("127.0.0.1", 65536, "http_options.port is 65536; allowed: 1 to 65535"),
    ],
)
def test_what_is_no_address_is_refused(host: object, port: object, line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_port(host, port)
    assert str(caught.value) == line
