"""The client of the Hub beside transformers 5, which asks through httpx2: how its sessions are made, and limited."""

from collections.abc import Callable
from typing import Any

import httpx2
from huggingface_hub import set_client_factory as set_factory
from huggingface_hub.utils import _http

__all__ = ["ERROR", "factory", "limited", "set_factory"]

ERROR = httpx2.HTTPError
"""Of the network, and of answers that are errors."""
_PARTS = ("connect", "read", "write", "pool")


def factory() -> Callable[[], Any]:
    """What makes sessions now. The client has no public way to ask for it."""
    client: Any = _http
    made: Callable[[], Any] = client._GLOBAL_CLIENT_FACTORY
    return made


def limited(make: Callable[[], Any], limit_s: Callable[[], float]) -> Any:
    """A session of `make` that gives a limit to each request without one.

    The client asks with `timeout=None`, which goes before a limit of the session.
    """

    def limit(request: Any) -> None:
        given = request.extensions.get("timeout", {})
        request.extensions = {**request.extensions, "timeout": {one: given.get(one) or limit_s() for one in _PARTS}}

    session = make()
    session.event_hooks = {**session.event_hooks, "request": [*session.event_hooks.get("request", []), limit]}
    return session
