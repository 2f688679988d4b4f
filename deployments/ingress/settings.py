"""Settings: what each concern adds to Ray's configuration, put together. A concern is a function that returns Lines."""

from pathlib import Path

from deployments.ingress.access import access
from deployments.ingress.aliases import aliases
from deployments.ingress.config import IngressConfig
from deployments.ingress.drain import draining
from deployments.ingress.limits import connections, limits
from deployments.ingress.overload import overload
from deployments.ingress.probes import probes
from deployments.ingress.rewrite import Settings
from deployments.ingress.tls import bind_options
from pipelines.tasks import TASKS


def settings(config: IngressConfig, folder: Path, address: str = "") -> Settings:
    """What the rewriting of this node's configuration needs; pages are put into `folder`.

    `address` is where the ingress listens, HOST:PORT; empty for where Ray Serve would let it listen.
    """
    # Who is refused for overload sends no body, so that comes before `limits`, which wait for it.
    lines = connections(config.limits) + overload() + limits(config.limits, folder) + access(config)
    lines += draining(folder) + probes()
    certificate = (config.tls.certificate, config.tls.key) if config.tls is not None else ()
    bind = bind_options(config.tls)
    return Settings(lines, aliases(), address, bind, config.keys or "", certificate, tuple(TASKS))
