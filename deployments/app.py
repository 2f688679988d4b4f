"""The builders that cluster.yaml imports. Frameworks at the edge: only here do plain classes become deployments.

No `from __future__ import annotations`: Serve inspects the builders' signatures, and would pass anything.
"""

from typing import Any

import ray
from ray import serve
from ray.serve import Application

from deployments.cluster.platform import Platform
from deployments.config import check_model, check_task, unknown_key
from deployments.gateway import Gateway
from deployments.observability import replica
from deployments.task_server import TaskServer
from pipelines.errors import ConfigurationError

ARGS = ("task", "model", "platform")


def build(args: dict[str, Any]) -> Application:
    """The application of one model: `args: {task: translation}`, for another than the task's default with `model`, its
    name. Its deployment is named after the task.

    `sextet serve --platform` adds `platform`, the fields of a Platform.
    """
    for key in args:
        if key not in ARGS:
            raise unknown_key(key, ARGS, "args")
    if "task" not in args:
        raise ConfigurationError("args lacks 'task'")
    check_task(args["task"])
    if args.get("model") is not None:
        check_model(args["model"])
    platform = Platform(**args["platform"]) if args.get("platform") else None
    given = (args["task"], replica.observe, platform, reserved_gpus, args.get("model"))
    return serve.deployment(TaskServer, name=args["task"]).bind(*given)


def reserved_gpus() -> float:
    """The GPUs that this replica reserves, in parts."""
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))


def gateway(args: dict[str, Any]) -> Application:
    """The application at `/`; it takes no args."""
    for key in args:
        raise unknown_key(key, (), "args")
    return serve.deployment(Gateway, name="gateway").bind(replica.watch_replicas)
