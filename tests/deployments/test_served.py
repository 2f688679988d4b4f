"""`sextet models` prints what a gateway lists."""

import json
from http.server import BaseHTTPRequestHandler

import pytest

from deployments.ask import AskError
from deployments.served import served, table
from tests.local_server import LocalServer

DIGEST = "0123456789ab" + "c" * 52
MODEL = {
    "id": "starter:sentiment",
    "version": "0123456789ab",
    "digest": DIGEST,
    "precision": "int8",
    "parity": {"passed": True, "agreement": 0.995},
    "memory_bytes": 300 * 2**20,
}
CATALOG = {
    "tasks": [
        {
            "task": "text-classification",
            "route": "/text-classification",
            "replicas": 2,
            "model": MODEL,
            "others": [{"name": "large", "route": "/text-classification/large", "replicas": 0, "model": None}],
        },
        {
            "task": "translation",
            "route": "/translation",
            "replicas": 1,
            "model": {name: value for name, value in MODEL.items() if name != "digest"},
            "others": [],
        },
    ]
}


class Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers["authorization"] == "Bearer k"
        body = json.dumps(CATALOG if known else {"error": "no key"}).encode()
        self.send_response(200 if known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_each_model_is_a_line_with_its_version_parity_memory_replicas_and_digest() -> None:
    """The last one's replica is of a release that says no digest."""
    with LocalServer(Gateway) as gateway:
        lines = table(served(gateway.url, "k")).splitlines()
        with pytest.raises(AskError, match="answered 401: no key"):
            served(gateway.url)

    assert [line.split() for line in lines] == [
        ["route", "model", "version", "precision", "parity", "memory", "replicas", "digest"],
        [
            "/text-classification",
            "starter:sentiment",
            "0123456789ab",
            "int8",
            "passed",
            "(99.5%)",
            "300",
            "MiB",
            "2",
            DIGEST,
        ],
        ["/text-classification/large", "-", "-", "-", "-", "-", "0", "-"],
        ["/translation", "starter:sentiment", "0123456789ab", "int8", "passed", "(99.5%)", "300", "MiB", "1", "-"],
    ]
