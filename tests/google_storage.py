"""A small Google Cloud Storage on loopback: what gcsfs asks for when it reads a bucket. Objects are files in a folder.

with GoogleStorage(folder) as storage:       folder/BUCKET/OBJECT
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
"""

import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.local_server import LocalServer


class GoogleStorage(LocalServer):
    """`fetched` lists the objects that were read, as `bucket/object`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        super().__init__(_Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        storage: GoogleStorage = self.server.service  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        match = re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
        if match is None:
            return self._send(404, b"{}", {})
        if match[2] is None:  # a listing: what is asked for here is what is below something that is no object
            return self._send(200, json.dumps({"kind": "storage#objects"}).encode(), {})
        name = f"{match[1]}/{unquote(match[2])}"
        if not (storage.folder / name).is_file():
            return self._send(404, b'{"error": {"code": 404, "message": "No such object"}}', {})
        content = (storage.folder / name).read_bytes()
        if parse_qs(url.query).get("alt") != ["media"]:
            found = {"kind": "storage#object", "bucket": match[1], "name": unquote(match[2]), "size": str(len(content))}
            return self._send(200, json.dumps(found).encode(), {})
        storage.fetched.append(name)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self._send(200, content, {})
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        self._send(206, content[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def log_message(self, *_: object) -> None:
        """A test's output is not the place for an access log."""

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
