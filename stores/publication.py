"""Publication: upload an artifact with its card to a repository of the Hub, or to a URL.

An upload replaces an artifact or goes to an empty place; files of the old artifact that the new one lacks are removed.
An artifact that serving would refuse is not published, nor one without a licence.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ArtifactError, ConfigurationError, first_line
from pipelines.runtime.artifact import MANIFEST_NAME, ModelArtifact
from stores import filesystem
from stores.address import HubAddress, UrlAddress, remote
from stores.hub import endpoint, explained, missing_package
from stores.listing import Listing, unwritable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Say = Callable[[str], None]
_CARD_FILES = {"README.md", ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE"}


def publish(folder: Path, to: str, *, private: bool = False, say: Say = lambda _line: None) -> str:
    """Publish the artifact in `folder`; returns the address that names exactly it, for `model:` of cluster.yaml.

    `to` is `owner/name`, `owner/name@branch` or a URL. `private` creates a private repository, and is refused where a
    public one exists. Raises ArtifactError for an artifact that must not be published, or a failed upload;
    ConfigurationError for a `to` that is no address.
    """
    artifact = ModelArtifact.open(folder)
    if not artifact.manifest.source.licence:
        raise ArtifactError(
            f"{folder} states no licence, so nobody could use it; put `license:` into the card (README.md) of "
            f"{artifact.manifest.source.checkpoint} and export it again"
        )
    address = remote(to if "@" in to or "://" in to else f"{to}@main")
    if isinstance(address, UrlAddress) and address.sha256 is None:
        if private:
            raise ConfigurationError(f"--private is for repositories of the Hub; who may read {to}, its storage says")
        return str(_to_url(artifact, address, say))
    if isinstance(address, HubAddress):
        return str(_to_hub(artifact, address, private, say))
    raise ConfigurationError(
        f"--to is {to!r}; allowed: owner/name, owner/name@branch or a URL such as s3://bucket/name"
    )


def _to_hub(artifact: ModelArtifact, address: HubAddress, private: bool, say: Say) -> HubAddress:
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HFValidationError
    except ModuleNotFoundError as error:
        raise missing_package(str(address), error) from None
    from requests.exceptions import RequestException

    from stores.time_limit import time_limit

    if constants.HF_HUB_OFFLINE:
        raise ArtifactError("HF_HUB_OFFLINE is set: nothing is published")
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")  # with 5, it gives up after half an hour
    try:
        with time_limit():
            return _commit(HfApi(endpoint=endpoint()), artifact, address, private, say)
    except HFValidationError:
        raise ConfigurationError(
            f"--to is {address.repository!r}; allowed: owner/name, of letters, digits, . - and _"
        ) from None
    except (RequestException, ConnectionError, TimeoutError, FileNotFoundError, RuntimeError, ValueError) as error:
        raise ArtifactError(_unpublished(error, address)) from None
    except OSError as error:  # of the manifest that is there, which is downloaded
        raise unwritable(str(address), Path(constants.HF_HUB_CACHE), error) from None


def _commit(api: "HfApi", artifact: ModelArtifact, address: HubAddress, private: bool, say: Say) -> HubAddress:
    """One commit on top of the one that was inspected; raises errors of the client, and ArtifactError."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import RevisionNotFoundError

    repository, branch = address.repository, address.revision
    files = _files(artifact)
    api.create_repo(repository, private=private or None, exist_ok=True)
    try:
        info = api.model_info(repository, revision=branch)
    except RevisionNotFoundError:
        api.create_branch(repository, branch=branch)
        info = api.model_info(repository, revision=branch)
    if private and not info.private:
        raise ArtifactError(
            f"{address} is there already, for everybody to see, and --private does not change that; "
            f"make it private in its settings, at {endpoint()}/{repository}/settings, or leave --private out"
        )
    there = {one.rfilename for one in info.siblings or []}
    if ".gitignore" in there:
        raise ArtifactError(
            f"{address} has a .gitignore, and the Hub leaves out in silence what that names; remove it there first"
        )
    old = Path(api.hf_hub_download(repository, MANIFEST_NAME, revision=info.sha)) if MANIFEST_NAME in there else None
    stale = _replaced(str(address), there, old.read_bytes() if old else None) - set(files)
    say(f"uploading {len(files)} files ({_megabytes(files.values())} MB) to {endpoint()}/{repository}")
    commit = api.create_commit(
        repository,
        [
            *(CommitOperationAdd(name, file) for name, file in files.items()),
            *(CommitOperationDelete(name) for name in sorted(stale & there)),
        ],
        commit_message=f"Publish {artifact.path.name}: {artifact.manifest.task}, {artifact.manifest.precision}",
        revision=branch,
        parent_commit=info.sha,
    )
    return HubAddress(repository, commit.oid)


def _to_url(artifact: ModelArtifact, address: UrlAddress, say: Say) -> UrlAddress:
    system, root = filesystem.opened(address)
    files = _files(artifact)
    with filesystem.explained(address):
        system.makedirs(root, exist_ok=True)
        there = {path.rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False, refresh=True)}
        old = filesystem.read_manifest(system, root, address) if MANIFEST_NAME in there else None
        stale = _replaced(str(address), there, old) - set(files)
        say(f"uploading {len(files)} files ({_megabytes(files.values())} MB) to {address}")
        for name, file in files.items():  # the manifest comes last: readers of it find its files
            system.put_file(str(file), f"{root}/{name}")
        for name in sorted(stale & there):
            system.rm_file(f"{root}/{name}")
    return UrlAddress(address.url, hashlib.sha256(files[MANIFEST_NAME].read_bytes()).hexdigest())


def _files(artifact: ModelArtifact) -> dict[str, Path]:
    """The files of the artifact alone; its folder may hold others."""
    return {name: artifact.path / name for name in (*artifact.manifest.files, MANIFEST_NAME)}


def _replaced(address: str, there: set[str], manifest: bytes | None) -> set[str]:
    """The files of the artifact that is there now; raises ArtifactError where something else is."""
    if manifest is not None:
        try:
            return set(Listing.of(address, manifest).digests)
        except ArtifactError:
            return set()  # of another release, or damaged: still an artifact
    if foreign := sorted(there - _CARD_FILES):
        raise ArtifactError(f"{address} holds {foreign[0]} and no {MANIFEST_NAME}, so it is not ours to replace")
    return set()


def _unpublished(error: Exception, address: HubAddress) -> str:
    cause: Any = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is None and "timed out" in str(cause):
        from stores.time_limit import limit_s

        silence = f"{endpoint()} did not answer within {limit_s():g} s"
        return f"{silence}, and {address} may not be published; look there, or publish it again"
    if status in (401, 403):
        token = "HF_TOKEN to a token that may write there"
        return f"{endpoint()} refuses to write {address.repository} ({status}); set {token}"
    if status is not None:
        reason = getattr(cause, "server_message", None) or first_line(cause)
        return f"{endpoint()} did not take {address} ({status}: {reason[:200]})"
    if isinstance(cause, ValueError):  # of the client, about an answer that refuses a file or that it cannot read
        return f"{endpoint()} did not take {address} ({' '.join(str(cause).split())[:200]})"
    return explained(cause, address.repository, None).replace(", and it is not in the cache", "")


def _megabytes(files: Iterable[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f}"
