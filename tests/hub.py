"""A small Hugging Face Hub on loopback: what the real huggingface_hub client asks for when it downloads a model, and
(tests.hub_uploads) when it publishes one.

with Hub() as hub:
    commit = hub.add("someone/bert", folder)
    hub.uploads.accounts["hf_token"] = "someone"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
"""

import hashlib
import json
import re
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub_uploads import RefusalError, Uploads, upload_modes, validate_card
from tests.local_server import LocalServer


@dataclass(frozen=True)
class Revision:
    """One commit of a repository, under the name of its branch or tag."""

    commit: str
    folder: Path


class Hub(LocalServer):
    """Repositories in memory; `fetched` lists the files that were downloaded, as `id/file`."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Revision]] = {}
        self.tokens: dict[str, str] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        self.uploads = Uploads()
        super().__init__(_Handler)

    def __exit__(self, *error: object) -> None:
        self.uploads.over.set()
        super().__exit__(*error)
        self.uploads.disk.cleanup()

    def add(
        self,
        model: str,
        folder: Path,
        *,
        branch: str = "main",
        commit: str | None = None,
        token: str | None = None,
        gated: bool = False,
    ) -> str:
        """Publish `folder` as a branch of `model`; returns the commit. `token` is needed to see it, if given."""
        digest = hashlib.sha1(f"{model} {branch}".encode())
        for file in sorted(folder.iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
        self.repositories.setdefault(model, {})[branch] = Revision(commit or digest.hexdigest(), folder)
        if token is not None:
            self.tokens[model] = token
        if gated:
            self.gated.add(model)
        return commit or digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def log_message(self, *_: object) -> None:
        """A test's output is not the place for an access log."""

    def _answer(self, *, with_body: bool) -> None:
        hub: Hub = self.server.service  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        if self._is_silent(hub, path):
            return None
        if hub.uploads.xet is not None and re.fullmatch(r"/api/models/.+/xet-write-token/[^/]+", path):
            hour = str(int(time()) + 3600)
            headers = {"X-Xet-Cas-Url": hub.uploads.xet, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": hour}
            return self._send(200, b"{}", headers, with_body)
        if match := re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path):
            model, name, file = match[1], match[2] or "main", None
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            model, name, file = match.groups()
        else:
            return self._refuse(404, "RepoNotFound", with_body)
        allowed = self.headers.get("Authorization") == f"Bearer {hub.tokens.get(model)}"
        if model in hub.tokens and not allowed:
            gated = model in hub.gated
            return self._refuse(403 if gated else 401, "GatedRepo" if gated else "RepoNotFound", with_body)
        if model not in hub.repositories:
            return self._refuse(404, "RepoNotFound", with_body)
        revisions = hub.repositories[model]
        by_commit = {revision.commit: revision for revision in revisions.values()}
        revision = revisions.get(name) or by_commit.get(name)
        if revision is None:
            return self._refuse(404, "RevisionNotFound", with_body)
        if file is None:
            return self._send(
                200, json.dumps(_info(model, revision, private=model in hub.uploads.private)).encode(), {}, with_body
            )
        if not (revision.folder / file).is_file():
            return self._refuse(404, "EntryNotFound", with_body)
        return self._send_file(hub, model, revision, file, with_body)

    def _write(self) -> None:
        hub: Hub = self.server.service  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        if hub.uploads.unread and self._is_silent(hub, path):
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_silent(hub, path):
            return
        try:
            status, answer = self._written(hub, path, body)
        except RefusalError as refusal:
            content = json.dumps({"error": refusal.message}).encode()
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            return self._send(refusal.status, content, headers, with_body=True)
        self._send(status, json.dumps(answer).encode(), {}, with_body=True)

    def _is_silent(self, hub: Hub, path: str) -> bool:
        """Whether this request has no answer, after its client has waited long enough."""
        if hub.uploads.silent is None or not re.fullmatch(hub.uploads.silent, path):
            return False
        self.close_connection = True
        hub.uploads.over.wait(60)
        return True

    def _written(self, hub: Hub, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        uploads, authorization = hub.uploads, self.headers.get("Authorization")
        if path == "/api/validate-yaml":
            return validate_card(json.loads(body))
        if match := re.fullmatch(r"/lfs/(\w+)(/verify)?", path):
            if not match[2]:
                uploads.put(match[1], body)
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            model = f"{asked['organization']}/{asked['name']}"
            uploads.require(authorization, asked["organization"])
            there = model in hub.repositories
            if not there:
                hub.add(model, uploads.first())
                uploads.private |= {model} if asked.get("private") else set()
            return (409 if there else 200), {
                "url": f"{hub.url}/{model}",
                "error": "You already created this model repo",
            }
        match = re.fullmatch(
            r"/(?:api/models/)?(.+?)(?:\.git/info/lfs/objects/(batch)|/(preupload|commit|branch)/([^/]+))", path
        )
        assert match is not None, path
        uploads.require(authorization, match[1].split("/")[0])
        if match[2] == "batch":
            return 200, uploads.batch(json.loads(body), hub.url)
        if match[3] == "preupload":
            return 200, upload_modes(json.loads(body))
        if match[3] == "branch":
            hub.add(match[1], hub.repositories[match[1]]["main"].folder, branch=match[4])
            return 200, {}
        folder = uploads.committed(body, hub.repositories[match[1]][match[4]].folder)
        commit = hub.add(match[1], folder, branch=match[4])
        return 200, {
            "commitUrl": f"https://huggingface.co/{match[1]}/commit/{commit}",
            "commitOid": commit,
            "pullRequestUrl": None,
        }

    def _send_file(self, hub: Hub, model: str, revision: Revision, file: str, with_body: bool) -> None:
        content = (revision.folder / file).read_bytes()
        headers = {
            "X-Repo-Commit": revision.commit,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        start = int((re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) or (0, 0))[1])
        if with_body:
            hub.fetched.append(f"{model}/{file}")
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers, with_body)

    def _refuse(self, status: int, code: str, with_body: bool) -> None:
        body = json.dumps({"error": code}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": code}, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _info(model: str, revision: Revision, *, private: bool) -> dict[str, Any]:
    files = sorted(file for file in revision.folder.iterdir() if file.is_file())
    return {
        "id": model,
        "modelId": model,
        "sha": revision.commit,
        "private": private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": file.name, "size": file.stat().st_size} for file in files],
    }
