"""What must stay light: the configuration and the terminal's client are read by commands that need no cluster."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["deployments.config", "deployments.ask", "deployments.cluster.launch", "deployments.cluster.worker_setup"],
)
def test_a_module_that_every_command_reads_imports_no_framework(module: str) -> None:
    code = (
        f"import sys, {module}; print([n for n in ('ray', 'starlette', 'torch', 'transformers') if n in sys.modules])"
    )

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_replica_imports_no_training_framework() -> None:
    code = (
        "import sys, deployments.app, deployments.openapi; deployments.openapi.document('1');"
        "print([n for n in ('torch', 'transformers', 'optimum') if n in sys.modules])"
    )

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_worker_that_was_set_up_has_serve_without_pandas_and_pyarrow_and_its_servers_on_loopback() -> None:
    code = (
        "import sys; from deployments.cluster.worker_setup import set_up; set_up();"
        "from ray._private.worker import global_worker; global_worker.get_serialization_context().serialize({});"
        "print([name for name in ('pandas', 'pyarrow') if name in sys.modules]);"
        "import grpc, ray.serve; from concurrent.futures import ThreadPoolExecutor;"
        "from ray.serve._private.replica import add_port_to_grpc_server as bind;"
        "port = bind(grpc.server(ThreadPoolExecutor(1)), '[::]:0');"
        "ports = [c.laddr for c in __import__('psutil').net_connections('inet')];"
        "print([a.ip.removeprefix('::ffff:') for a in ports if a.port == port]);"  # a socket of IPv6 names it so
        "import pandas, pyarrow"
    )

    printed = subprocess.check_output([sys.executable, "-c", code], text=True).split("\n")

    assert printed[:2] == ["[]", "['127.0.0.1']"]
