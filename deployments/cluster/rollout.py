"""Rollout: a cluster.yaml is checked against Ray Serve's schema, deployed, and awaited until its replicas run.

Imports ray: import it after the environment is set.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, get_args

import ray
from pydantic import BaseModel, ValidationError
from ray import serve
from ray._common.utils import import_module_and_attr
from ray.exceptions import RayError

# serve.start() takes no config of the form of cluster.yaml, and cannot deploy one: that is what `serve deploy` calls.
from ray.serve._private.api import serve_start
from ray.serve._private.constants import SERVE_NAMESPACE, SERVE_PROXY_NAME
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from deployments.cluster.ports import MAX_PORT
from deployments.cluster.progress import REMINDER_S, Say
from deployments.config import unknown_key
from pipelines.errors import ConfigurationError, SextetError, first_line
from pipelines.misfit import shown

POLL_S = 0.5
RELOAD_S = 30.0  # how long HAProxy may take to be replaced by another process
RECOVERY_S = 60.0  # how long Ray Serve may take to replace replicas that died, before or while it deploys
MOST = 1_000_000
"""Replicas of a deployment, and CPUs or GPUs of one of them: Serve's schema takes infinity, and no sum holds that."""
_AMOUNTS = ("num_cpus", "num_gpus", "min_replicas", "initial_replicas", "max_replicas")


class RolloutError(SextetError):
    """A replica did not start; the message is its reason."""


def validated(content: Mapping[str, Any]) -> ServeDeploySchema:
    """The configuration as Ray Serve takes it. Serve ignores unknown keys; here they are refused.

    Raises ConfigurationError, one line that names the key.
    """
    _check_keys(ServeDeploySchema, content, "cluster.yaml")
    _check_policies(content, "cluster.yaml")
    try:
        config = ServeDeploySchema.model_validate(content)
        for application in config.applications:
            for deployment in application.deployments:
                _check_autoscaling(f"{application.name}: autoscaling_config", deployment.autoscaling_config)
                _check_amounts(application.name, deployment.model_dump(exclude_unset=True))
        if not 1 <= config.grpc_options.port <= MAX_PORT:
            raise ConfigurationError(f"grpc_options.port is {config.grpc_options.port}; allowed: 1 to {MAX_PORT}")
        return config
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "cluster.yaml"
        raise ConfigurationError(f"{where} is {shown(first['input'])}: {first['msg']}") from None


def deploy(config: ServeDeploySchema) -> None:
    """Hand the configuration to Ray Serve, starting Serve where it does not run.

    Raises RolloutError where Serve does not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # `wait` reports progress instead
    try:
        client = serve_start(
            http_options=config.http_options.model_dump(),
            proxy_location=config.proxy_location,
            grpc_options=config.grpc_options.model_dump(),
        )
        client.deploy_apps(config)
    except (RayError, RayServeException, TimeoutError) as error:
        raise RolloutError(f"Ray Serve did not start: {reason([str(error)])}") from error


def reload_ingress() -> None:
    """Have each HAProxy read its settings (deployments/ingress) anew, as where replicas change; return when it has."""
    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    for name in names:
        if name.startswith(SERVE_PROXY_NAME):
            with suppress(RayError, ValueError):  # it has ended: the next one reads them
                manager = ray.get_actor(name, namespace=SERVE_NAMESPACE)
                if hasattr(manager, "_reload_haproxy"):  # else it is the fallback proxy
                    ray.get(manager._reload_haproxy.remote(), timeout=RELOAD_S)


def wait(config: ServeDeploySchema, say: Say, raise_if_dead: Callable[[], None]) -> None:
    """Return when every application runs. Raises RolloutError at the first replica that does not start, or where one
    that died is not replaced within RECOVERY_S.

    `raise_if_dead` is called at each poll.
    """
    started_at = reminded_at = time.monotonic()
    healthy_at: dict[str, float] = {}
    waiting = [application.name for application in config.applications]
    while waiting:
        raise_if_dead()
        status = serve.status().applications
        for name in [name for name in waiting if name in status]:
            if status[name].status != "UNHEALTHY":
                healthy_at[name] = time.monotonic()
            _raise_failure(name, status[name], time.monotonic() - healthy_at.get(name, started_at))
            if status[name].status == "RUNNING":
                waiting.remove(name)
                say(f"{name} is up ({time.monotonic() - started_at:.0f} s)")
                reminded_at = time.monotonic()
        if waiting and time.monotonic() - reminded_at > REMINDER_S:
            say(f"waiting for {', '.join(waiting)}{_reason_to_wait(waiting, status)}")
            reminded_at = time.monotonic()
        time.sleep(POLL_S)


def _check_policies(given: Any, where: str) -> None:
    """Refuse a policy of scaling that Serve could not import: its schema does so, with a traceback."""
    if isinstance(given, list):
        for index, one in enumerate(given):
            _check_policies(one, f"{where}[{one.get('name', index) if isinstance(one, Mapping) else index}]")
    elif isinstance(given, Mapping):
        function = given.get("policy_function")
        if isinstance(function, str):
            try:
                import_module_and_attr(function)
            except Exception as error:  # whatever the operator's module raises
                reason = f"it cannot be imported ({first_line(error)})"
                raise ConfigurationError(f"{where}: policy_function is {shown(function)}; {reason}") from None
        for key, value in given.items():
            if key != "user_config":
                _check_policies(value, f"{where}: {key}")


def _check_autoscaling(where: str, given: Any) -> None:
    """Serve's schema leaves this to its controller, which would only log it."""
    if isinstance(given, Mapping):
        try:
            AutoscalingConfig.model_validate(given)
        except ValidationError as error:
            raise ConfigurationError(f"{where}: {error.errors()[0]['msg']}") from None


def _check_amounts(application: str, given: Mapping[str, Any]) -> None:
    """Refuse an amount that no cluster has: infinity, NaN, a typing error of many digits."""
    named = {"num_replicas": given.get("num_replicas")}
    for name in ("autoscaling_config", "ray_actor_options"):
        amounts = given.get(name)
        named |= {f"{name}.{key}": amounts.get(key) for key in _AMOUNTS} if isinstance(amounts, Mapping) else {}
    for index, bundle in enumerate(given.get("placement_group_bundles") or ()):
        named |= {f"placement_group_bundles[{index}].{key}": amount for key, amount in bundle.items()}
    for name, amount in named.items():
        if isinstance(amount, int | float) and not 0 <= amount <= MOST and not name.endswith(".memory"):
            raise ConfigurationError(f"{application}: {name} is {shown(amount)}; allowed: 0 to {MOST:,}")


def _check_keys(model: type[BaseModel], given: Mapping[str, Any], where: str) -> None:
    for key, value in given.items():
        if key not in model.model_fields:
            raise unknown_key(key, model.model_fields, where)
        nested = next(_models(model.model_fields[key].annotation), None)
        if nested is not None:
            for index, one in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(value, list) and not isinstance(one, Mapping):
                    raise ConfigurationError(f"{where}: {key}[{index}] is {shown(one)}; allowed: a mapping")
                if isinstance(one, Mapping):
                    name = one.get("name", index) if isinstance(value, list) else None
                    _check_keys(nested, one, f"{where}: {key}" if name is None else f"{where}: {key}[{name}]")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside an annotation such as `Optional[Union[Dict, AutoscalingConfig]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _raise_failure(name: str, application: Any, unhealthy_s: float) -> None:
    messages = [application.message, *(one.message for one in application.deployments.values())]
    failed = application.status == "DEPLOY_FAILED" or any("failed to start" in message for message in messages)
    if failed or unhealthy_s > RECOVERY_S:
        raise RolloutError(f"{name} did not start: {reason(messages)}")


def reason(messages: list[str]) -> str:
    """The exception in the last line of a traceback in Serve's messages, without its module; HAProxy's own alert, where
    it is HAProxy that did not start.
    """
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    for line in lines:
        if alert := re.match(r"\[ALERT\]\s+\(\d+\) : (.*)", line):
            return f"HAProxy: {alert[1]}"
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b.*:", line)]
    last = errors[-1] if errors else (lines[-1] if lines else "Serve gives no reason")
    return re.sub(r"^[\w.]*\.", "", last)


def _reason_to_wait(waiting: list[str], status: dict[str, Any]) -> str:
    """What Serve says about replicas for which no node has resources."""
    for name in waiting:
        for deployment in status[name].deployments.values() if name in status else ():
            if "to be scheduled" in deployment.message:
                return f": {deployment.message.splitlines()[0]}"
    return ""
