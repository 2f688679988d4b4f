"""The writing half of the small Hub: what the real huggingface_hub client sends to create a repository and to commit.

POST /api/repos/create                        a repository, 409 if it is there already
POST /api/validate-yaml                       the metadata of a card
POST /api/models/ID/preupload/BRANCH          which files go where: *.onnx to large file storage, the rest into git
POST /ID.git/info/lfs/objects/batch           where to put large files that are not there yet
PUT  /lfs/OID                                 the bytes of one; refused where they are others
POST /lfs/OID/verify
GET  /api/models/ID/xet-write-token/BRANCH    where hf-xet puts large files, and what lets it in
POST /api/models/ID/branch/BRANCH             a new branch
POST /api/models/ID/commit/BRANCH             lines of JSON: a header, files, large files, deleted files
"""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import yaml

Answer = tuple[int, dict[str, Any]]


class RefusalError(Exception):
    """Status, error code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Uploads:
    """`accounts` maps a token to the user who may write below that name; `received` lists the large files that came.
    Large files are refused with the message `quota`, or go to the server `xet` through hf-xet.

    A request whose path matches `silent` is never answered (until `over`); with `unread` its body is not taken either.
    """

    accounts: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    quota: str | None = None
    xet: str | None = None
    silent: str | None = None
    unread: bool = False
    over: Event = field(default_factory=Event)
    disk: "TemporaryDirectory[str]" = field(default_factory=TemporaryDirectory)

    def require(self, authorization: str | None, namespace: str | None = None) -> None:
        user = self.accounts.get((authorization or "").removeprefix("Bearer "))
        if user is None:
            raise RefusalError(401, "Unauthorized", "Invalid username or password.")
        if namespace not in (None, user):
            raise RefusalError(403, "Forbidden", f"You don't have the rights to create a model under {namespace}.")

    def put(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusalError(400, "BadDigest", "the content has another sha256")
        self.large[oid] = content
        self.received.append(oid)

    def batch(self, request: dict[str, Any], url: str) -> dict[str, Any]:
        objects: list[dict[str, Any]] = []
        for one in request["objects"]:
            if self.quota is not None:
                objects.append({**one, "error": {"code": 422, "message": self.quota}})
                continue
            here = f"{url}/lfs/{one['oid']}"
            actions = {"upload": {"href": here}, "verify": {"href": f"{here}/verify"}}
            objects.append(one if one["oid"] in self.large else {**one, "actions": actions})
        return {"transfer": "xet" if self.xet and "xet" in request["transfers"] else "basic", "objects": objects}

    def first(self) -> Path:
        """The folder of a new repository's first revision."""
        folder = self._next()
        folder.mkdir()
        (folder / ".gitattributes").write_text("*.onnx filter=lfs diff=lfs merge=lfs -text\n")
        return folder

    def committed(self, lines: bytes, before: Path) -> Path:
        """The folder of the revision that a commit makes out of the one `before` it."""
        folder = Path(shutil.copytree(before, self._next()))
        for kind, value in _operations(lines):
            target = folder / value.get("path", "")
            if kind == "file":
                target.write_bytes(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                target.write_bytes(self.large[value["oid"]])
            elif kind == "deletedFile":
                target.unlink()
        return folder

    def _next(self) -> Path:
        return Path(self.disk.name) / str(len(list(Path(self.disk.name).iterdir())))


def upload_modes(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to preupload: as a new repository's .gitattributes has it."""
    return {
        "files": [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith((".onnx", ".onnx_data")) else "regular",
                "shouldIgnore": False,
            }
            for one in request["files"]
        ]
    }


def validate_card(request: dict[str, Any]) -> Answer:
    """Whether the metadata at the top of a card is a mapping with a licence."""
    block = re.match(r"---\n(.*?)\n---\n", request["content"], re.DOTALL)
    metadata = yaml.safe_load(block[1]) if block else None
    errors = [] if isinstance(metadata, dict) and metadata.get("license") else [{"message": '"license" is required'}]
    return (400 if errors else 200), {"errors": errors, "warnings": []}


def _operations(lines: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in lines.splitlines():
        operation = json.loads(line)
        yield operation["key"], operation["value"]
