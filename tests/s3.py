"""A small S3 on loopback: what s3fs asks for when it reads and writes a bucket. Objects are files below a folder.

with S3(folder) as s3:                       folder/BUCKET/KEY
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
"""

import hashlib
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

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

    def do_PUT(self) -> None:
        """PutObject."""
        s3: S3 = self.server.service  # type: ignore[attr-defined]
        file = s3.folder / unquote(urlsplit(self.path).path).strip("/")
        content = self._body()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self._send(200, b"", {"ETag": _etag(content)}, True)

    def do_POST(self) -> None:
        """DeleteObjects."""
        s3: S3 = self.server.service  # type: ignore[attr-defined]
        bucket = unquote(urlsplit(self.path).path).strip("/")
        for key in ElementTree.fromstring(self._body()).iter("{http://s3.amazonaws.com/doc/2006-03-01/}Key"):
            file = s3.folder / bucket / (key.text or "")
            if file.is_file():  # a prefix is no object
                file.unlink()
        self._send(200, b"<DeleteResult/>", {"Content-Type": "application/xml"}, True)

    def _body(self) -> bytes:
        """What was sent, also in the chunks that botocore signs one by one."""
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return sent
        content = b""
        while sent:
            head, _, sent = sent.partition(b"\r\n")
            size = int(head.split(b";")[0] or b"0", 16)
            if not size:
                break
            content, sent = content + sent[:size], sent[size + 2 :]
        return content

    def log_message(self, *_: object) -> None:
        """A test's output is not the place for an access log."""

    def _answer(self, *, with_body: bool) -> None:
        s3: S3 = self.server.service  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path).strip("/")
        signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        if s3.key is not None and (signed is None or signed[1] != s3.key):
            return self._refuse(403, "AccessDenied", with_body)
        if urlsplit(self.path).query.startswith("list-type"):
            listed = _listing(s3.folder / path, parse_qs(urlsplit(self.path).query))
            return self._send(200, listed.encode(), {"Content-Type": "application/xml"}, with_body)
        if not (s3.folder / path).is_file():
            return self._refuse(404, "NoSuchKey", with_body)
        content = (s3.folder / path).read_bytes()
        if with_body:
            s3.fetched.append(path)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self._send(200, content, {"ETag": _etag(content)}, with_body)
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        headers = {"ETag": _etag(content), "Content-Range": f"bytes {start}-{end}/{len(content)}"}
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


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _listing(bucket: Path, query: dict[str, list[str]]) -> str:
    """ListObjectsV2: objects with a prefix, those below a further slash as common prefixes where that delimits."""
    prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))

    def parts() -> Iterator[str]:
        folders = set()
        for file in sorted(bucket.rglob("*")):
            key = file.relative_to(bucket).as_posix()
            if not file.is_file() or not key.startswith(prefix):
                continue
            if delimiter and delimiter in key[len(prefix) :]:
                folders.add(prefix + key[len(prefix) :].split(delimiter)[0] + delimiter)
                continue
            content = file.read_bytes()
            yield f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            yield f"<ETag>{_etag(content)}</ETag><Size>{len(content)}</Size></Contents>"
        yield from (f"<CommonPrefixes><Prefix>{one}</Prefix></CommonPrefixes>" for one in sorted(folders))

    found = "".join(parts())
    count = found.count("<Contents>") + found.count("<CommonPrefixes>")
    head = f"<Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>"
    return f'<?xml version="1.0"?><ListBucketResult>{head}{found}</ListBucketResult>'
