"""Settings: what each concern adds to Ray's configuration, put together. A concern is a function that returns Lines."""

import os

from deployments.ingress.access import access
from deployments.ingress.config import IngressConfig, TlsConfig
from deployments.ingress.drain import draining
from deployments.ingress.grpc.rules import grpc
from deployments.ingress.limits import connections, limits
from deployments.ingress.lines import NO_LOG, Lines, Settings
from deployments.ingress.model_rules.aliases import aliases, of_the_gateway
from deployments.ingress.model_rules.rules import models
from deployments.ingress.node import CERTIFICATE, CLIENT_CA
from deployments.ingress.overload import overload
from deployments.ingress.probes import probes
from pipelines.tasks import TASKS

LOG_TARGET = "RAY_SERVE_HAPROXY_LOG_TARGET"
UNLOGGED = Lines(defaults=(NO_LOG,))
"""Ray Serve has HAProxy send a line for each request, with address and query, to 127.0.0.1:514: whatever listens there
would keep it.
"""


def settings(config: IngressConfig, address: str = "") -> Settings:
    """What the rewriting of this node's configuration needs.

    `address` is where the ingress listens, HOST:PORT; empty for where Ray Serve would let it listen.
    """
    # Who is refused for overload sends no body, so that comes before `limits`, which wait for it.
    lines = connections(config.limits) + overload() + limits(config.limits)
    # What it rewrites, `access` judges by the path that the gateway sees.
    lines += of_the_gateway() + access(config)
    lines += models(config.limits.body_timeout_s, config.traffic is not None) + draining() + probes()
    if LOG_TARGET not in os.environ:
        lines += UNLOGGED
    certificate = (config.tls.certificate, config.tls.key) if config.tls is not None else ()
    return Settings(
        lines,
        aliases(),
        address,
        _bind_options(config.tls),
        config.keys or "",
        certificate,
        client_ca=config.tls.client_ca or "" if config.tls is not None else "",
        traffic=config.traffic or "",
        order=tuple(TASKS),
        grpc=grpc(config, _bind_options(config.tls, "h2")),
    )


def _bind_options(config: TlsConfig | None, protocols: str = "h2,http/1.1") -> str:
    """How a frontend encrypts, and whom it asks for a certificate; empty where it does not.

    The certificates are node.py's copies.
    """
    if config is None:
        return ""
    options = f"ssl crt {CERTIFICATE} alpn {protocols} ssl-min-ver TLSv1.2"
    if config.client_ca is not None:
        options += f" ca-file {CLIENT_CA} verify {config.client_certificates}"
    return options
