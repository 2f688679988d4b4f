"""A replica that does nothing: what the ingress and Serve themselves cost a request."""

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

ANSWER = b'[[{"label":"noop","score":1.0}]]'


class Noop:
    """Reads the body, as every server must, and answers at once."""

    async def __call__(self, request: Request) -> Response:
        await request.body()
        return Response(ANSWER, media_type="application/json")


app = serve.deployment(Noop, name="noop").bind()
