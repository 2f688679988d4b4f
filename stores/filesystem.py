"""Filesystem: artifacts behind URLs (s3://, gs://, file://, ...), read through fsspec and kept in a cache on this disk.

<SEXTET_CACHE, or ~/.cache/sextet>/artifacts/
    DIGEST           an artifact, named by the sha256 of its artifact.json, whatever URL leads to it
    .DIGEST.partial  a download; after its process was killed, the next one continues it
    .DIGEST.lock     held by the process that downloads; the other replicas of the node wait
"""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import ArtifactError, ConfigurationError, first_line
from pipelines.runtime.artifact import MANIFEST_NAME
from stores.address import UrlAddress
from stores.hub import missing_package
from stores.listing import Listing, unwritable

MANIFEST_LIMIT = 16 * 2**20
"""Bytes. Manifests of `sextet export` have a few thousand."""
_CHUNK = 8 * 2**20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_folder() -> Path:
    """$SEXTET_CACHE, or ~/.cache/sextet: files that can be fetched or made again."""
    return Path(os.environ.get("SEXTET_CACHE") or "~/.cache/sextet").expanduser()


def cache() -> Path:
    """Where downloaded artifacts are kept on this node."""
    return cache_folder() / "artifacts"


def fetch(address: UrlAddress, say: Callable[[str], None]) -> tuple[Path, UrlAddress]:
    """The folder of an artifact in the cache, whole, and its address with the digest of its manifest.

    A pinned address that the cache has needs no network. Raises ArtifactError, or ConfigurationError for a URL that no
    installed filesystem reads.
    """
    if address.sha256 is not None:
        kept = cache() / address.sha256
        if (kept / MANIFEST_NAME).is_file():
            manifest = (kept / MANIFEST_NAME).read_bytes()
            if hashlib.sha256(manifest).hexdigest() == address.sha256 and not Listing.of(
                str(address), manifest
            ).missing(kept):
                return kept, address
    filesystem, root = opened(address)
    with explained(address):
        manifest = read_manifest(filesystem, root, address)
    digest = hashlib.sha256(manifest).hexdigest()
    if address.sha256 not in (None, digest):
        raise ArtifactError(f"{address}: its {MANIFEST_NAME} has the sha256 {digest}: it was altered, or replaced")
    pinned = UrlAddress(address.url, digest)
    listing = Listing.of(str(address), manifest)
    folder = cache() / digest
    if _is_whole(listing, manifest, folder):
        return folder, pinned  # also where the cache is part of an image, and read-only
    try:
        with _locked(cache() / f".{digest}.lock", lambda: say(f"waiting for another process to fetch {address}")):
            if not _is_whole(listing, manifest, folder):  # another process may have been here meanwhile
                if folder.exists():
                    shutil.rmtree(folder)  # damaged; processes that have its files open keep them
                _download(filesystem, root, listing, manifest, folder, address, say)
    except OSError as error:
        raise unwritable(str(address), cache(), error) from None
    return folder, pinned


def opened(address: UrlAddress) -> tuple[Any, str]:
    """fsspec's filesystem of a URL, and the folder in it; raises ConfigurationError where there is none for it."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise missing_package(str(address), error) from None
    try:
        filesystem, root = fsspec.url_to_fs(address.url)
    except ImportError as error:
        raise ConfigurationError(f"{address} needs a package that is not installed: {first_line(error)}") from None
    except ValueError as error:
        raise ConfigurationError(f"{address}: {error}") from None
    return filesystem, root.rstrip("/")


def read_manifest(filesystem: Any, root: str, address: UrlAddress) -> bytes:
    """The bytes of an artifact.json; raises ArtifactError for a file that is too long to be one."""
    manifest: bytes = filesystem.cat_file(f"{root}/{MANIFEST_NAME}", start=0, end=MANIFEST_LIMIT + 1)
    if len(manifest) > MANIFEST_LIMIT:
        raise ArtifactError(
            f"{MANIFEST_NAME} of {address} is longer than the {MANIFEST_LIMIT} bytes of a manifest; publish it again"
        )
    return manifest


@contextmanager
def explained(address: UrlAddress) -> Iterator[None]:
    """Word whatever a filesystem raises as an ArtifactError: each client has its own errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactError(f"{address} is not a model artifact: there is no {_named(error)}") from None
    except PermissionError as error:
        raise ArtifactError(
            f"no access to {address} ({first_line(error)}); check the credentials of this node"
        ) from None
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"{address} cannot be reached ({type(error).__name__}: {first_line(error)[:120]})"
        ) from None


def _is_whole(listing: Listing, manifest: bytes, folder: Path) -> bool:
    file = folder / MANIFEST_NAME
    return file.is_file() and file.read_bytes() == manifest and not listing.missing(folder)


def _download(
    filesystem: Any,
    root: str,
    listing: Listing,
    manifest: bytes,
    folder: Path,
    address: UrlAddress,
    say: Callable[[str], None],
) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    missing = listing.missing(partial)
    say(f"fetching {address} ({listing.size / 1e6:.1f} MB in {len(missing)} files)")
    try:
        listing.require_space(missing, partial)
        for name in missing:
            left = listing.digests[name].size
            with (partial / name).open("wb") as file:
                for chunk in _chunks(filesystem, f"{root}/{name}", address, left + 1):
                    left -= len(chunk)
                    if left < 0:
                        raise listing.too_long(name)
                    file.write(chunk)
            if not listing.is_whole(partial, name):
                raise listing.altered(name)
        (partial / MANIFEST_NAME).write_bytes(manifest)
    except (OSError, ArtifactError) as error:
        if not isinstance(error, OSError) or error.errno in FULL:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(folder)


def _chunks(filesystem: Any, path: str, address: UrlAddress, limit: int) -> Iterator[bytes]:
    """The first `limit` bytes of a remote file. Writing is done elsewhere: a full disk is no lost connection."""
    block = min(limit, _CHUNK)
    with explained(address), filesystem.open(path, "rb", block_size=block, cache_type="readahead") as file:
        while chunk := file.read(min(limit, block)):
            limit -= len(chunk)
            yield chunk


@contextmanager
def _locked(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Exclusive on this node; the lock of a killed process is free again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _named(error: FileNotFoundError) -> str:
    return str(error.filename or error.args[0] if error.args else MANIFEST_NAME)
