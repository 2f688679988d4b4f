"""Secret: what replicas know an ingress of their own cluster by, and files that only their owner can read. The standard
library alone (node.py).

The secret follows from Ray's token, which every node of a cluster has and whose holders can run code there anyway:
nothing more has to be given to nodes. A header costs a request less than mutual TLS, which Ray's servers cannot speak
to HAProxy.
"""

import hashlib
import hmac
import os
from pathlib import Path


def shared_secret() -> str:
    """Empty where Ray asks for no token, or no HAProxy runs: then replicas answer everybody who reaches them."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return ""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        try:
            token = (Path(named) if named else Path.home() / ".ray" / "auth_token").read_text(encoding="utf-8").strip()
        except OSError:
            return ""
    return hmac.new(token.strip().encode(), b"sextet ingress", hashlib.sha256).hexdigest() if token else ""


def write_private(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: somebody may be reading it, and the disk may be full."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
            opened.write(content)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
