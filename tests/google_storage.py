"""A small Google Cloud Storage on loopback: what gcsfs asks for when it reads and writes a bucket. Objects are files in
a folder.

with GoogleStorage(folder) as storage:       folder/BUCKET/OBJECT
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
"""

import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
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
        if match[2] is None:
            return self._send(200, json.dumps(_listing(storage.folder, match[1], parse_qs(url.query))).encode(), {})
        name = f"{match[1]}/{unquote(match[2])}"
        if not (storage.folder / name).is_file():
            return self._send(404, b'{"error": {"code": 404, "message": "No such object"}}', {})
        content = (storage.folder / name).read_bytes()
        if parse_qs(url.query).get("alt") != ["media"]:
            found = _described(storage.folder, match[1], unquote(match[2]))
            return self._send(200, json.dumps(found).encode(), {})
        storage.fetched.append(name)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self._send(200, content, {})
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        self._send(206, content[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def do_POST(self) -> None:
        """An upload, or a batch of deletions."""
        storage: GoogleStorage = self.server.service  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query, match = parse_qs(url.query), re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", url.path)
        if match is None:
            return self._delete(storage, body)
        if query["uploadType"] == ["multipart"]:
            _, head, content = body.split(b"--==0==\n", 2)
            name = json.loads(head.partition(b"\n\n")[2])["name"]
            return self._keep(storage, match[1], name, content.partition(b"\n\n")[2].removesuffix(b"\n--==0==--"))
        if "upload_id" not in query:  # the first of a resumable upload
            return self._send(200, b"{}", {"Location": f"{storage.url}{self.path}&upload_id=1"})
        self._keep(storage, match[1], query["name"][0], body)

    def do_DELETE(self) -> None:
        """One object."""
        storage: GoogleStorage = self.server.service  # type: ignore[attr-defined]
        match = re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)", urlsplit(self.path).path)
        file = storage.folder / match[1] / unquote(match[2]) if match else storage.folder
        if not file.is_file():
            return self._send(404, b'{"error": {"code": 404, "message": "No such object"}}', {})
        file.unlink()
        self._send(204, b"", {})

    def _keep(self, storage: GoogleStorage, bucket: str, name: str, content: bytes) -> None:
        file = storage.folder / bucket / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self._send(200, json.dumps(_described(storage.folder, bucket, name)).encode(), {})

    def _delete(self, storage: GoogleStorage, body: bytes) -> None:
        answers = []
        for bucket, name in re.findall(rb"DELETE /storage/v1/b/([^/]+)/o/(\S+?)[? ]", body):
            file = storage.folder / unquote(bucket.decode()) / unquote(name.decode())
            answers.append(b"--batch\r\n\r\nHTTP/1.1 %d \r\n\r\n" % (204 if file.is_file() else 404))
            if file.is_file():  # a prefix is no object
                file.unlink()
        self._send(200, b"".join(answers) + b"--batch--", {"Content-Type": "multipart/mixed; boundary=batch"})

    def log_message(self, *_: object) -> None:
        """A test's output is not the place for an access log."""

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _described(folder: Path, bucket: str, name: str) -> dict[str, Any]:
    size, generation = (folder / bucket / name).stat().st_size, (folder / bucket / name).stat().st_mtime_ns
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(size),
        "generation": str(generation),
        "updated": "2026-01-01T00:00:00.000Z",
    }


def _listing(folder: Path, bucket: str, query: dict[str, list[str]]) -> dict[str, Any]:
    """Objects with a prefix; those below a further slash as prefixes where that delimits."""
    prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
    items, prefixes = [], set()
    for file in sorted((folder / bucket).rglob("*")):
        name = file.relative_to(folder / bucket).as_posix()
        rest = name.removeprefix(prefix)
        if not file.is_file() or not name.startswith(prefix):
            continue
        if delimiter and delimiter in rest:
            prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
        else:
            items.append(_described(folder, bucket, name))
    return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}
