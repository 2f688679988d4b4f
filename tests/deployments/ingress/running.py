"""HAProxy as Ray Serve runs it, without Ray: what the tests of the ingress start."""

from pathlib import Path

from deployments.ingress import haproxy
from deployments.ingress.config import IngressConfig
from deployments.ingress.settings import settings


def command(folder: Path, file: Path, config: IngressConfig | None = None) -> list[str]:
    """What runs HAProxy on `file`, as Ray wrote it, with `config`; `folder` is the wrapper's."""
    binary = haproxy.find_binary()
    assert binary is not None
    wrapper = haproxy.write_wrapper(binary, folder, settings(config or IngressConfig(), folder))
    return [str(wrapper), "-db", "-f", str(file)]
