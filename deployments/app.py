"""The builders that cluster.yaml imports. Frameworks at the edge: only here do plain classes become deployments.

No `from __future__ import annotations`: Serve inspects the builders' signatures, and would pass anything.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve._private.constants import HEALTHY_MESSAGE

from deployments.cluster.platform import Platform
from deployments.config import CUT_S, DRAIN_S, check_model, check_task, unknown_key
from deployments.http.request import Observer
from deployments.observability import replica
from deployments.task_server import TaskServer
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from stores.filesystem import cache_folder

ARGS = ("task", "model", "platform")
LIFE = {
    "health_check_period_s": 0.5,  # Ray Serve notices a dead process when it checks next
    "health_check_timeout_s": 10.0,  # and replaces one that hangs after three in a row: half a minute
    "max_surge_percent": 100,  # a replaced replica answers until the new one is warm
    "graceful_shutdown_timeout_s": DRAIN_S + CUT_S,
    "graceful_shutdown_wait_loop_s": 0.5,
}
"""What holds where cluster.yaml says nothing else."""


def build(args: dict[str, Any]) -> Application:
    """The application of one model: `args: {task: translation}`, for another than the task's default with `model`, its
    name. Its deployment is named after the task.

    `sextet serve --platform` adds `platform`, the fields of a Platform.
    """
    return observed_by(replica.observe, args)


def observed_by(observe: Callable[[ModelArtifact], Observer], args: dict[str, Any]) -> Application:
    """The same, where `observe` makes what is told of all that the model does."""
    for key in args:
        if key not in ARGS:
            raise unknown_key(key, ARGS, "args")
    if "task" not in args:
        raise ConfigurationError("args lacks 'task'")
    check_task(args["task"])
    if args.get("model") is not None:
        check_model(args["model"])
    platform = Platform(**args["platform"]) if args.get("platform") else None
    deployment = serve.deployment(TaskServer, name=args["task"], **LIFE)
    given = (args["task"], observe, platform, reserved_gpus, on_ending, costs, args.get("model"))
    return deployment.bind(*given)


def reserved_gpus() -> float:
    """The GPUs that this replica reserves, in parts."""
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))


def costs() -> Path | None:
    """The folder of this node that keeps what batches cost from one start of a replica to the next."""
    try:
        return cache_folder() / "costs"
    except RuntimeError:  # this user has no home
        return None


def gateway(args: dict[str, Any]) -> Application:
    """The application at `/`; it takes no args."""
    for key in args:
        raise unknown_key(key, (), "args")
    from deployments.gateway import Gateway  # whose pages no replica of a model needs

    return serve.deployment(Gateway, name="gateway", **LIFE).bind(replica.watch_replicas, on_ending)


def on_ending(begin: Callable[[float], None]) -> None:
    """Call `begin`, once Ray Serve ends the replica of this process, with the seconds until it kills it.

    From then on a replica fails health checks though it answers for some seconds more. HAProxy would take it out before
    it knows the one that replaces it: here a replica passes them until it refuses connections.
    """
    worker = ray._private.worker.global_worker  # no public API says it before the requests inside have ended
    ending = worker.actors[worker.actor_id]._replica_impl
    end = ending._perform_graceful_shutdown

    async def health() -> tuple[bool, str]:
        return ending._healthy, HEALTHY_MESSAGE if ending._healthy else "UNHEALTHY"

    async def told() -> None:
        ending._dataplane_health_check = health
        begin(ending._deployment_config.graceful_shutdown_timeout_s)
        await end()

    ending._perform_graceful_shutdown = told
