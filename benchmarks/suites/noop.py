"""A replica that does nothing, to measure what the ingress and Ray Serve cost a request."""

import asyncio

from ray import serve
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


app = serve.deployment(Noop, name="noop").bind()
