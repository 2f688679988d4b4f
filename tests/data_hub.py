"""A data set of the Hugging Face Hub on loopback: what the real `datasets` and huggingface_hub ask for to read one.

with DataHub("someone/reviews", folder) as hub:
    run(..., env={"HF_ENDPOINT": hub.url})
"""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.local_server import LocalServer

COMMIT = "c" * 40


class DataHub(LocalServer):
    """One repository with one commit: the files of `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        super().__init__(_Handler)

    def described(self, file: str) -> dict[str, Any]:
        content = self.files[file]
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": file, "size": len(content), "oid": oid, "rfilename": file}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """A test's output is not the place for an access log."""

    def _answer(self) -> None:
        hub: DataHub = self.server.service  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        name = re.escape(hub.name)
        if match := re.fullmatch(rf"/datasets/{name}/resolve/[^/]+/(.+)", path):
            return self._file(hub, match[1])
        if match := re.fullmatch(rf"/api/datasets/{name}/tree/[^/]+(?:/(.*))?", path):
            files = [hub.described(file) for file in hub.files if file.startswith(match[1] or "")]
            return self._send(200, json.dumps(files).encode())
        if re.fullmatch(rf"/api/datasets/{name}/paths-info/[^/]+", path):
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            found = [hub.described(file) for file in wanted if file in hub.files]
            return self._send(200, json.dumps(found).encode())
        if re.fullmatch(rf"/api/datasets/{name}(?:/revision/[^/]+)?", path):
            siblings = [hub.described(file) for file in hub.files]
            info = {"id": hub.name, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": siblings}
            return self._send(200, json.dumps(info).encode())
        code = "EntryNotFound" if path.startswith(f"/datasets/{hub.name}/") else "RepoNotFound"
        return self._send(404, b"", {"X-Error-Code": code})

    def _file(self, hub: DataHub, file: str) -> None:
        if file not in hub.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content, status, headers = hub.files[file], 200, {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        return self._send(status, content, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
