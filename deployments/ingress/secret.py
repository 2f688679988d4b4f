"""Secret: what replicas know an ingress of their own cluster by. The standard library alone (node.py).

It follows from Ray's token, which every node of a cluster has and whose holders can run code there anyway: nothing more
has to be given to nodes. A header costs a request less than mutual TLS, which Ray's servers cannot speak to HAProxy.
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
