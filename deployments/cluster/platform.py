"""Platform: a managed service that runs a container with one task, and the port and paths that it requires.

    sagemaker   Amazon SageMaker: GET /ping, POST /invocations, port 8080 (SAGEMAKER_BIND_TO_PORT where it is set)
    vertex      Vertex AI: AIP_HTTP_PORT, AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE say where it looks

The service connects from outside the container, so the ingress listens on every interface: docs/platforms.md.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deployments.config import check_task, cut_down, model_of, user_configs
from pipelines.errors import ConfigurationError

NAMES = ("sagemaker", "vertex")
EVERY_INTERFACE = "0.0.0.0"
DEFAULT_PORT = 8080


@dataclass(frozen=True)
class Platform:
    """`health_route` answers 200 while a replica can answer `predict_route`, and only then."""

    name: str
    port: int
    health_route: str
    predict_route: str

    @classmethod
    def of(cls, name: str, environment: Mapping[str, str]) -> "Platform":
        """The platform `name` with the port and paths that `environment` sets; raises ConfigurationError."""
        if name == "sagemaker":
            return cls(name, _port("SAGEMAKER_BIND_TO_PORT", environment), "/ping", "/invocations")
        if name == "vertex":
            health = _route("AIP_HEALTH_ROUTE", "/health", environment)
            predict = _route("AIP_PREDICT_ROUTE", "/predict", environment)
            if health == predict:
                raise ConfigurationError(
                    f"AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are both {health!r}; allowed: two routes"
                )
            return cls(name, _port("AIP_HTTP_PORT", environment), health, predict)
        raise ConfigurationError(f"--platform is {name!r}; allowed: {', '.join(NAMES)}")

    def cut(self, content: Mapping[str, Any], task: str | None) -> dict[str, Any]:
        """`content` of a cluster.yaml with one task only, which answers at the root; raises ConfigurationError."""
        tasks = [name for name in user_configs(content) if model_of(name) is None]
        if task is not None:
            check_task(task)
        elif len(tasks) > 1:
            raise ConfigurationError(
                f"a container of {self.name} serves one task; choose with --task: {', '.join(tasks)}"
            )
        chosen = task or tasks[0]
        if chosen not in tasks:
            raise ConfigurationError(
                f"--task is {chosen!r}, which the file does not serve; allowed: {', '.join(tasks)}"
            )
        cut = cut_down(content, [chosen])
        (application,) = cut["applications"]
        args = {"task": chosen, "platform": asdict(self)}
        return {
            **cut,
            "http_options": {**content.get("http_options", {}), "host": EVERY_INTERFACE, "port": self.port},
            "applications": [application | {"route_prefix": "/", "args": args}],
        }


def _port(name: str, environment: Mapping[str, str]) -> int:
    given = environment.get(name, "")
    if given and not (given.isascii() and given.isdecimal() and 0 < int(given) < 65536):
        raise ConfigurationError(f"{name} is {given!r}; allowed: a port")
    return int(given or DEFAULT_PORT)


def _route(name: str, default: str, environment: Mapping[str, str]) -> str:
    given = environment.get(name) or default
    if not given.startswith("/") or not given.strip("/"):
        raise ConfigurationError(f"{name} is {given!r}; allowed: a path such as {default}")
    return given.rstrip("/")
