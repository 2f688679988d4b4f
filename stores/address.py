"""Address: the place of an artifact, as `model:` of cluster.yaml and `--to` of `sextet publish` name it.

    models/sentiment                     a folder
    user/name@revision                   a repository of the Hugging Face Hub: a commit, tag or branch of it
    s3://bucket/folder                   a folder of any filesystem that fsspec knows
    s3://bucket/folder@sha256:DIGEST     the same, with the digest that its artifact.json must have

The revision tells a repository from a folder. `@sha256:` pins a URL as a commit pins a repository of the Hub.
"""

import re
from dataclasses import dataclass

from pipelines.errors import ConfigurationError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://.")
_REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)@(.*)", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PIN = "@sha256:"


@dataclass(frozen=True)
class HubAddress:
    """A revision of a repository `owner/name`."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


@dataclass(frozen=True)
class UrlAddress:
    """A folder behind a URL; `sha256` (hex) is the digest of its artifact.json, where it is pinned."""

    url: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.url}{_PIN}{self.sha256}" if self.sha256 else self.url


def remote(name: str) -> HubAddress | UrlAddress | None:
    """The address that `name` is, None where it is a folder; raises ConfigurationError for one that is malformed."""
    if _URL.match(name):
        url, pinned, digest = name.rpartition(_PIN)
        if pinned and not _DIGEST.fullmatch(digest):
            raise ConfigurationError(f"{name}: the digest is {digest!r}; allowed: 64 hexadecimal digits")
        return UrlAddress(url.rstrip("/"), digest) if pinned else UrlAddress(name.rstrip("/"))
    if found := _REPOSITORY.fullmatch(name):
        if not found[2]:
            raise ConfigurationError(f"{name} names no revision; allowed after the @: a commit, tag or branch")
        return HubAddress(found[1], found[2])
    return None
