"""Guard: replicas answer the ingresses of their own cluster alone, and listen where only machines of it can reach them.

HAProxy adds a secret to every request (deployments/ingress/secret.py). Ray Serve gives `http_options.host` to the
servers of replicas, too: where that is every interface, they listen on the node's own address instead.
"""

import hmac
import socket
from types import SimpleNamespace
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http.errors import Failure, ForbiddenError
from deployments.http.request import SECRET_HEADER

OPEN_PATHS = ("/-/healthz", "/-/routes")
"""What HAProxy's health checks ask, of Ray Serve and not of an application."""
EVERY_INTERFACE = ("0.0.0.0", "::", "")
_SECRET = SECRET_HEADER.encode()


class FromIngress:
    """Answers 403 to requests without `secret`, and removes it from the others; an empty one lets everybody in."""

    def __init__(self, app: ASGIApp, secret: str) -> None:
        self._app, self._secret = app, secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = b""
            for index, (name, value) in enumerate(scope["headers"]):
                if name == _SECRET:
                    given = value
                    del scope["headers"][index]
                    break
            known = not self._secret or hmac.compare_digest(given, self._secret)
            if not known and scope["path"] not in OPEN_PATHS:
                error = ForbiddenError("a replica answers the ingress of its cluster alone")
                await Failure.of(error).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def listen_on_node_address(http_util: Any, address: str) -> None:
    """Let the servers that Ray Serve's module `http_util` starts from now on listen on `address` where they were told
    every interface. Ray Serve has no setting for it.
    """

    class NodeSocket(socket.socket):
        def bind(self, given: Any) -> None:
            host, *rest = given
            super().bind((address, *rest) if host in EVERY_INTERFACE else given)

    http_util.socket = SimpleNamespace(**vars(socket) | {"socket": NodeSocket})
