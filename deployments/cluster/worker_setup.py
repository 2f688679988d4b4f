"""What every worker process of `sextet serve` does first: Ray calls it as its worker setup hook.

Loopback: with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 Ray binds its own servers to 127.0.0.1, and ingress/rewrite.py binds
HAProxy's pages there. One server is left: the gRPC server through which replicas call each other listens on every
interface and unpickles what it receives.

Memory: where they are installed, as beside the exporter, Ray Serve imports pandas, only to recognize a DataFrame that a
handler returns, and Ray imports pyarrow, only to pickle its tables in another way. That is 85 MB and half a second in
each of a dozen processes.

HAProxy: the process that runs it starts it again when it dies.

Changes in place: while a replica applies another `user_config`, Ray Serve's controller takes it out of HAProxy's
servers, and its requests go through the fallback proxy. Here it stays: a TaskServer answers meanwhile.

Ports: that of a replica which has ended is given to no other one while an HAProxy process may live that knows it there.
A change of cluster.yaml changes how long that is.

Starts: the controller looks more often while replicas start (scaling/pace.py).
"""

import sys
from typing import Any

from deployments.cluster.restart import keep_haproxy_running
from deployments.ingress.haproxy import told
from deployments.scaling.pace import hurry_starts

UNNEEDED = ("pandas", "pyarrow")
RELOADED_S = 30  # from when a replica has ended until no HAProxy process begins that knows it: Ray Serve's own margin


def set_up() -> None:
    """Call it before anything imports ray.serve. A handler that imports one of UNNEEDED itself still gets it."""
    bind_to_loopback()
    _import_serve_alone()
    keep_haproxy_running()
    _keep_what_is_updated()
    keep_ports_as_long_as_haproxy()
    hurry_starts()


def bind_to_loopback() -> None:
    """All that a worker needs where no replica runs."""
    from ray._common import tls_utils  # Ray has no setting for this server's address

    bind = tls_utils.add_port_to_grpc_server

    def bind_on_loopback(server: object, address: str) -> int:
        port: int = bind(server, address.replace("[::]:", "127.0.0.1:"))
        return port

    tls_utils.add_port_to_grpc_server = bind_on_loopback


def _import_serve_alone() -> None:
    absent = [name for name in UNNEEDED if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # `import pandas` fails as if it were not installed
    try:
        import ray.serve  # noqa: F401
        from ray._private.worker import global_worker

        global_worker.get_serialization_context()  # else made, with its imports, when something is pickled first
    finally:
        for name in absent:
            del sys.modules[name]


def keep_ports_as_long_as_haproxy() -> None:
    from ray.serve._private import node_port_manager  # Ray Serve has no setting for this that can change

    ports, usual_s = node_port_manager.PortAllocator, node_port_manager.RAY_SERVE_PORT_QUARANTINE_S
    release = ports.release

    def release_later(allocator: Any, *given: Any, **options: Any) -> None:
        settings = told()
        longest_s = settings.hard_stop_s + RELOADED_S if settings is not None else 0
        node_port_manager.RAY_SERVE_PORT_QUARANTINE_S = max(usual_s, longest_s)
        release(allocator, *given, **options)

    ports.release = release_later


def _keep_what_is_updated() -> None:
    from ray.serve._private.common import ReplicaState
    from ray.serve._private.deployment_state import DeploymentState  # Ray Serve has no setting for this

    running = DeploymentState.get_running_replica_infos

    def running_or_updated(state: Any) -> list[Any]:
        updated = state._replicas.get([ReplicaState.UPDATING])
        return [*running(state), *(one.get_running_replica_info(state._cluster_node_info_cache) for one in updated)]

    DeploymentState.get_running_replica_infos = running_or_updated
