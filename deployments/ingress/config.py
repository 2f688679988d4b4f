"""The ingress as an operator configures it: frozen objects, checked once. No ray in here.

applications:
  - name: gateway
    deployments:
      - name: gateway
        user_config:
          ingress: {...}       -> IngressConfig
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from deployments.config import read

GATEWAY = "gateway"
MAX_SECONDS = 86_400
MAX_CONNECTIONS = 1_000_000
Seconds = Annotated[int, Meta(ge=1, le=MAX_SECONDS)]


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may hold of the ingress before a request of theirs is read as a whole."""

    max_connections: Annotated[int, Meta(ge=1, le=MAX_CONNECTIONS)] = 20_000
    body_timeout_s: Seconds = 60


@dataclass(frozen=True)
class IngressConfig:
    """The gateway's `user_config: {ingress: ...}`."""

    limits: ConnectionLimits = field(default_factory=ConnectionLimits)

    @classmethod
    def from_user_config(cls, given: Any) -> "IngressConfig":
        """Raises ConfigurationError that names the key and what is allowed."""
        return read(_GatewayConfig, given or {}, "user_config of gateway").ingress

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "IngressConfig":
        """That of a cluster.yaml; the defaults where it has no gateway. Raises ConfigurationError."""
        for application in content["applications"]:
            listed = application.get("deployments") if isinstance(application, dict) else None
            for one in listed if isinstance(listed, list) else ():
                if isinstance(one, dict) and application.get("name") == one.get("name") == GATEWAY:
                    return cls.from_user_config(one.get("user_config"))
        return cls()


@dataclass(frozen=True)
class _GatewayConfig:
    ingress: IngressConfig = field(default_factory=IngressConfig)
