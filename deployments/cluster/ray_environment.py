"""The environment of a Ray cluster, on this machine or of each of its nodes. Ray reads it at import: set it before."""

import os
import random
import secrets
import socket
from pathlib import Path

from deployments.ingress.haproxy import write_wrapper

TUNED = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # at the default of 0.1 an idle controller takes 4% of a core
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",  # the default of 1000 stalls 25 ms at each flush
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a killed HAProxy is back in seconds
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # after the default of 5 a slow machine kills what is starting
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # What was inside a replica that dies is asked of another one, where no answer has begun: inference may be repeated.
    # Three times at most, so that a request that kills replicas ends too.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",  # a replica that refuses one connection is gone: no try is lost on it
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",  # a request has to fit in here to be asked again; the default is 16384
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.http.middleware.middlewares",
    "RAY_prestart_worker_first_driver": "0",  # workers that start before anybody needs them only delay the others
    "RAY_worker_niceness": "0",  # by default Ray runs its workers, which are the servers here, behind everything else
    "RAY_USAGE_STATS_ENABLED": "0",
}
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # one log line through Python for each request
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # means: this node's address is 127.0.0.1
PYTHON_PROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # replicas would listen for a proxy that is not there
}
SPARE_PORTS = range(10_000, 30_000)  # below those of replicas, and below those that Linux hands out


def prepare(folder: Path, haproxy: Path | None) -> None:
    """Set the environment for a cluster of this machine alone; `folder` is its own and becomes HAProxy's.

    What the user has set stays, except that HAProxy is used exactly if there is one. Ray's own servers are on loopback
    and behind a token of this cluster's own, wherever the ingress listens.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    wanted = TUNED | LOOPBACK | token | (_haproxy_files(folder) if haproxy else {})
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})
    os.environ.update(_proxy(folder, haproxy))


def of_node(folder: Path, haproxy: Path | None) -> dict[str, str]:
    """What `ray start` needs to find on each node of a cluster of several; `folder` is the node's own, and stays."""
    return TUNED | _proxy(folder, haproxy)


def _proxy(folder: Path, haproxy: Path | None) -> dict[str, str]:
    if haproxy is None:
        return PYTHON_PROXY
    return HAPROXY | {"RAY_SERVE_HAPROXY_BINARY_PATH": str(write_wrapper(haproxy, folder))}


def _haproxy_files(folder: Path) -> dict[str, str]:
    """Files and ports that two clusters on a machine must not share."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": free_port(8404),
        "RAY_SERVE_HAPROXY_METRICS_PORT": free_port(9101),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": free_port(8500),
    }


def free_port(preferred: int) -> str:
    """`preferred`, or another port where that is taken."""
    return str(preferred if _is_free(preferred) else spare_port())


def spare_port() -> int:
    """A port that nothing listens on.

    Not one that the system hands out: it is bound half a minute later, and Ray's processes take such ports meanwhile.
    """
    tried = random.sample(SPARE_PORTS, 100)
    return next((port for port in tried if _is_free(port)), tried[0])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
