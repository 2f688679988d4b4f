"""Replicas that do nothing: what the ingress and Ray Serve cost."""

import asyncio
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

ANSWER = b'[[{"label":"noop","score":1.0}]]'
WAIT_HEADER = "x-noop-wait-seconds"


class Noop:
    """Reads the body and answers at once, or after as many seconds as the header says."""

    async def __call__(self, request: Request) -> Response:
        await request.body()
        if wait_s := request.headers.get(WAIT_HEADER):
            await asyncio.sleep(float(wait_s))
        return Response(ANSWER, media_type="application/json")


class Named:
    """In the place of a task's replica: it answers POSTs at once with `answer`."""

    def __init__(self, answer: str) -> None:
        self._answer = answer.encode()

    async def __call__(self, request: Request) -> Response:
        if request.method != "POST":  # what the launcher knows a task by
            return Response(status_code=405)
        await request.body()
        return Response(self._answer, media_type="application/json")


app = serve.deployment(Noop, name="noop").bind()


def named(args: dict[str, Any]) -> Application:
    """For `args: {answer: JSON}`."""
    return serve.deployment(Named, name="named").bind(args["answer"])
