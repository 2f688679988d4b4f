"""A small S3 on loopback: what s3fs asks for when it reads a bucket. Objects are files below a folder.

with S3(folder) as s3:                       folder/BUCKET/KEY
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
"""

import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.local_server import LocalServer


class S3(LocalServer):
    """`fetched` lists the keys that were read, `sent` counts bytes; `key` is the access key that may, None for any."""

    def __init__(self, folder: Path, key: str | None = None) -> None:
        self.folder, self.key = folder, key
        self.fetched: list[str] = []
        self.sent = 0
        super().__init__(_Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """A test's output is not the place for an access log."""

    def _answer(self, *, with_body: bool) -> None:
        s3: S3 = self.server.service  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path).strip("/")
        signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        if s3.key is not None and (signed is None or signed[1] != s3.key):
            return self._refuse(403, "AccessDenied", with_body)
        if urlsplit(self.path).query.startswith("list-type"):
            empty = b'<?xml version="1.0"?><ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>'
            return self._send(200, empty, {"Content-Type": "application/xml"}, with_body)
        if not (s3.folder / path).is_file():
            return self._refuse(404, "NoSuchKey", with_body)
        content = (s3.folder / path).read_bytes()
        if with_body:
            s3.fetched.append(path)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self._send(200, content, {"ETag": '"etag"'}, with_body)
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        headers = {"ETag": '"etag"', "Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return self._send(206, content[start : end + 1], headers, with_body)

    def _refuse(self, status: int, code: str, with_body: bool) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()
        self._send(status, body, {"Content-Type": "application/xml"}, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            s3: S3 = self.server.service  # type: ignore[attr-defined]
            s3.sent += len(body)
            self.wfile.write(body)
