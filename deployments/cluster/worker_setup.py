"""What `sextet serve` lets every worker process of its cluster do first: named to Ray as its worker setup hook.

Loopback: with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 Ray binds its own servers to 127.0.0.1, and HAProxy's are bound there
by haproxy.py. One is left: the gRPC server through which replicas call each other listens on every interface and
unpickles what it is sent.

Weight: Serve imports pandas wherever it is installed (as it is beside the exporter), only to know a DataFrame when a
handler returns one. That is 65 MB and half a second in each of a dozen processes.
"""

import sys


def set_up() -> None:
    """Must run before anything imports ray.serve; a handler that imports pandas by itself still gets it."""
    _bind_to_loopback()
    _import_serve_without_pandas()


def _bind_to_loopback() -> None:
    from ray._common import tls_utils

    bind = tls_utils.add_port_to_grpc_server

    def bind_on_loopback(server: object, address: str) -> int:
        port: int = bind(server, address.replace("[::]:", "127.0.0.1:"))
        return port

    tls_utils.add_port_to_grpc_server = bind_on_loopback


def _import_serve_without_pandas() -> None:
    sys.modules["pandas"] = None  # type: ignore[assignment]  # an import of it fails as if it were not there
    try:
        import ray.serve  # noqa: F401
    finally:
        del sys.modules["pandas"]
