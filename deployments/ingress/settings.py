"""Settings: what each concern adds to Ray's configuration, put together. A concern is a function that returns Lines."""

from pathlib import Path

from deployments.ingress.aliases import aliases
from deployments.ingress.config import IngressConfig
from deployments.ingress.drain import draining
from deployments.ingress.limits import limits
from deployments.ingress.overload import overload
from deployments.ingress.probes import probes
from deployments.ingress.rewrite import Settings
from pipelines.tasks import TASKS


def settings(config: IngressConfig, folder: Path) -> Settings:
    """What the rewriting of this node's configuration needs; pages and other files are put into `folder`."""
    lines = overload() + limits(config.limits, folder) + draining(folder) + probes()
    return Settings(lines, aliases(), tuple(TASKS))
