"""Guard: replicas answer the ingresses of their own cluster alone, wherever they listen.

HAProxy adds a secret to every request (deployments/ingress/keys.py). Ray Serve gives `http_options.host` to the
servers of replicas, too: under `ray start` they may listen on every interface.
"""

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http.errors import Failure, ForbiddenError
from deployments.http.request import SECRET_HEADER

OPEN_PATHS = ("/-/healthz", "/-/routes")
"""What HAProxy's health checks ask, of Ray Serve and not of an application."""
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
