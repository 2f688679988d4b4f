"""TLS: how the HTTP frontend encrypts, and whom it asks for a certificate. The certificate is node.py's copy."""

from deployments.ingress.config import TlsConfig
from deployments.ingress.node import CERTIFICATE


def bind_options(config: TlsConfig | None) -> str:
    """Of the frontend's address; empty where it speaks plain HTTP."""
    if config is None:
        return ""
    options = f"ssl crt {CERTIFICATE} alpn h2,http/1.1 ssl-min-ver TLSv1.2"
    if config.client_ca is not None:
        options += f' ca-file "{config.client_ca}" verify {config.client_certificates}'
    return options
