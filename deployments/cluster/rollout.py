"""Rollout: a configuration becomes running replicas, or a reason why not. Needs a Ray cluster."""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from deployments.cluster.progress import REMINDER_S, Say
from pipelines.errors import SextetError

POLL_S = 0.5
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


class RolloutError(SextetError):
    """A replica did not start; the message is its reason."""


def deploy(config: ServeDeploySchema) -> str:
    """Hand the configuration to Serve, starting Serve if need be; returns the URL at which it listens.

    Raises RolloutError where Serve does not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # its progress is told here, in fewer words
    try:
        client = serve_start(
            http_options=config.http_options.model_dump(),
            proxy_location=config.proxy_location,
            grpc_options=config.grpc_options.model_dump(),
        )
        client.deploy_apps(config)
    except (RayError, RayServeException, TimeoutError) as error:
        raise RolloutError(f"Ray Serve did not start: {_reason([str(error)])}") from error
    host = "127.0.0.1" if client.http_config.host in (None, "0.0.0.0", "::") else client.http_config.host
    return f"http://{host}:{client.http_config.port}"


def wait(config: ServeDeploySchema, say: Say, check_alive: Callable[[], None]) -> None:
    """Return when every application runs; raises RolloutError at the first replica that does not start."""
    started_at = reminded_at = time.monotonic()
    waiting = [application.name for application in config.applications]
    while waiting:
        check_alive()
        status = serve.status().applications
        for name in [name for name in waiting if name in status]:
            _raise_failure(name, status[name])
            if status[name].status == "RUNNING":
                waiting.remove(name)
                say(f"{name} is up ({time.monotonic() - started_at:.0f} s)")
                reminded_at = time.monotonic()
        if waiting and time.monotonic() - reminded_at > REMINDER_S:
            say(f"waiting for {', '.join(waiting)}{_reason_to_wait(waiting, status)}")
            reminded_at = time.monotonic()
        time.sleep(POLL_S)


def _raise_failure(name: str, application: Any) -> None:
    messages = [application.message, *(one.message for one in application.deployments.values())]
    failed = application.status in FAILED or any("failed to start" in message for message in messages)
    if failed:
        raise RolloutError(f"{name} did not start: {_reason(messages)}")


def _reason(messages: list[str]) -> str:
    """The last line of a traceback in Serve's messages: the exception that started it all."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b.*:", line)]
    last = errors[-1] if errors else (lines[-1] if lines else "Serve gives no reason")
    return re.sub(r"^[\w.]*\.", "", last)


def _reason_to_wait(waiting: list[str], status: dict[str, Any]) -> str:
    """What Serve says about deployments that cannot be scheduled."""
    for name in waiting:
        for deployment in status[name].deployments.values() if name in status else ():
            if "to be scheduled" in deployment.message:
                return f": {deployment.message.splitlines()[0]}"
    return ""
