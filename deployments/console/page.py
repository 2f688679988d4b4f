"""The console: a static page for browsers. It uses the public HTTP API only, and nothing from elsewhere."""

from functools import cache
from pathlib import Path

from starlette.responses import Response

FILES = {
    "index.html": "text/html; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "tasks.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


def page(name: str) -> Response | None:
    """One of the files; None where there is none of that name."""
    if name not in FILES:
        return None
    return Response(_content(name), headers=HEADERS, media_type=FILES[name])


@cache
def _content(name: str) -> bytes:
    return (Path(__file__).parent / name).read_bytes()
