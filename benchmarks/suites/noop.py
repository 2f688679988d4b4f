"""A replica that does nothing, to measure what the ingress and Ray Serve cost a request."""

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

ANSWER = b'[[{"label":"noop","score":1.0}]]'


class Noop:
    """Reads the body and answers at once."""

    async def __call__(self, request: Request) -> Response:
        await request.body()
        return Response(ANSWER, media_type="application/json")


app = serve.deployment(Noop, name="noop").bind()
