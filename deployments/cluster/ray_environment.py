"""The environment variables of a Ray cluster: of one on this machine, or of each node of a larger one.

Ray reads them when it is imported: set them before.
"""

import math
import os
import random
import secrets
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.config import DRAIN_S, adapters_of
from deployments.ingress.config import Address, IngressConfig
from deployments.ingress.haproxy import tell, write_wrapper
from deployments.observability.gone import DETECTOR
from deployments.scaling.options import may_sleep
from pipelines.runtime.session_config import usable_cores

TUNED = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # at the default of 0.1 an idle controller takes 4% of a core
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",  # the default of 1000 stalls 25 ms at each flush
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a killed HAProxy is back in seconds
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # after the default of 5 a slow machine kills what is starting
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # HAProxy sends a request whose replica dies before its answer begins to another one: inference may be repeated.
    # Three times at most, so that a request that kills replicas comes to an end (of one replica: ingress/rewrite.py).
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",  # one refused connection marks a replica as down
    # A replica whose process has ended is noticed in 0.75 s though nobody asks it.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "500ms",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",  # only a request that fits in here can be repeated; the default is 16384
    # One that hangs, or whose model does, ends none of its requests: they go on elsewhere once it is killed.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.http.middleware.middlewares",
    "RAY_prestart_worker_first_driver": "0",  # workers that start before they are needed delay the others
    "RAY_worker_niceness": "0",  # by default Ray runs its workers, which are the servers here, at niceness 15
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_event_stats_print_interval_ms": "0",  # -1, said to disable them, has the GCS log its state without a pause
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": DETECTOR,  # metrics of replicas that have ended disappear
    # glibc has eight arenas for each core. What is freed in one is not used by the threads of another, and a replica
    # with a dozen threads keeps ten times as much of its peaks.
    "MALLOC_ARENA_MAX": str(max(2, usable_cores() // 4)),
    "RAY_ROTATION_MAX_BYTES": "1048576",
    "RAY_ROTATION_BACKUP_COUNT": "1",
}
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # one log line through Python for each request
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
}
ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # in effect: this node's address is 127.0.0.1
    "AUTOSCALER_UPDATE_INTERVAL_S": "3600",  # no node is ever added; it logs each time
    "RAY_event_log_reporter_enabled": "0",  # to a dashboard that does not run: a traceback for each event
}
PYTHON_PROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # replicas would listen for an HAProxy that does not run
}
ADDRESS_VARIABLE = "SEXTET_METRICS_ADDRESS"  # where a node hands out metrics: observability/exposition.py
METRICS_PORT = 9103
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"  # how long a node may take that is told to end
DRAINED_S = 15.0  # longer than a replica that ends: it takes requests for some seconds more
SPARE_PORTS = range(20_000, 30_000)  # between the ports of `ray start`'s workers and those of Serve's replicas


def prepare(
    folder: Path, haproxy: Path | None, ingress: IngressConfig, address: Address, drain_s: float = DRAIN_S
) -> None:
    """Set the environment for a cluster of this machine alone. `folder` is its own and becomes HAProxy's. A replica
    that ends has `drain_s` at most.

    Variables that are set already stay, except that HAProxy is used exactly where `haproxy` names its binary; `ingress`
    configures it, and it listens on `address`. Ray's own servers listen on loopback and ask for this cluster's token.
    """
    metrics = {ADDRESS_VARIABLE: f"127.0.0.1:{free_port(METRICS_PORT)}"}
    _set(TUNED | _ending(drain_s) | metrics | (_haproxy_files(folder) if haproxy else {}))
    os.environ.update(_proxy(folder, haproxy, ingress, address.text()))


def prepare_without_serve() -> None:
    """Set the environment for a cluster of this machine alone on which no replica runs."""
    _set(TUNED)


def _set(variables: Mapping[str, str]) -> None:
    """Those of a cluster alone, and `variables`, where they are not set already."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    wanted = {**ALONE, **token, **variables}
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})


def node_exports(folder: Path, haproxy: Path | None, ingress: IngressConfig, drain_s: float = DRAIN_S) -> list[str]:
    """Shell commands that export what `ray start` has to find on each node. `folder` is the node's own and must stay.
    A replica that ends has `drain_s` at most.

    Ray's servers ask for a token, which the operator gives to every node: `ray start` refuses to run without one.
    After SIGTERM, `ray start --block` lets replicas move and requests end. Both stay as they are where they are set.
    """
    variables = TUNED | _ending(drain_s) | _proxy(folder, haproxy, ingress)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    kept = {"RAY_AUTH_MODE": "token", DRAIN_VARIABLE: str(math.ceil(drain_s + DRAINED_S))}
    return [*exports, *(f'export {name}="${{{name}:-{value}}}"' for name, value in kept.items())]


def tell_ingress(folder: Path, content: Mapping[str, Any], drain_s: float) -> bool:
    """Tell the script of HAProxy in `folder` what the content of a cluster.yaml means for it.

    Whether that is something else than before; HAProxy knows from its next reload on.
    """
    given = [one for one in content["applications"] if isinstance(one, dict)]
    configured = {str(one.get("name", "default")): str(one.get("route_prefix", "/")) for one in given}
    return tell(folder, may_sleep(content), configured, _hard_stop_s(drain_s), adapters_of(content))


def _hard_stop_s(drain_s: float) -> int:
    """An HAProxy process that a reload has replaced outlives the replica of each of its requests: those have `drain_s`
    from the reload, the replica `drain_s` from when it is told to end, which may be as late as that.
    """
    return math.ceil(2 * drain_s + DRAINED_S)


def _ending(drain_s: float) -> dict[str, str]:
    return {"RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(_hard_stop_s(drain_s))}


def lacks_token() -> bool:
    """Whether Ray would find no token where it asks for one; `ray start` then ends with a traceback."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return False
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    return not os.environ.get("RAY_AUTH_TOKEN") and not file.is_file()


def _proxy(folder: Path, haproxy: Path | None, ingress: IngressConfig, address: str = "") -> dict[str, str]:
    if haproxy is None:
        return PYTHON_PROXY
    from deployments.ingress.settings import settings  # imports starlette

    return HAPROXY | {"RAY_SERVE_HAPROXY_BINARY_PATH": str(write_wrapper(haproxy, folder, settings(ingress, address)))}


def _haproxy_files(folder: Path) -> dict[str, str]:
    """Files and ports that two clusters on one machine must not share."""
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

    HAProxy binds it half a minute later: a port that the system hands out could be another Ray process's by then.
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
