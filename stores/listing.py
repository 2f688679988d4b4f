"""Listing: the files that a remote manifest lists, and whether local files are the same."""

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines.errors import ArtifactError
from pipelines.runtime.artifact import FileDigest, Manifest, remedy


@dataclass(frozen=True)
class Listing:
    """`digests` by file name; `address` is for error messages."""

    address: str
    digests: dict[str, FileDigest]

    @classmethod
    def of(cls, address: str, manifest: bytes) -> Self:
        """Raises ArtifactError for bytes that are no manifest of this release."""
        try:
            return cls(address, dict(Manifest.from_json(manifest.decode()).files))
        except ValueError as error:
            raise ArtifactError(
                f"artifact.json of {address} cannot be read ({error}); {remedy(error, 'publish')}"
            ) from None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(digest.size for digest in self.digests.values())

    def is_whole(self, folder: Path, name: str) -> bool:
        """Whether `folder` holds a file as the manifest describes it."""
        file = folder / name
        return file.is_file() and FileDigest.of(file) == self.digests[name]

    def missing(self, folder: Path) -> list[str]:
        """The files that `folder` lacks, or holds with other content."""
        return [name for name in self.digests if not self.is_whole(folder, name)]

    def require_space(self, names: list[str], folder: Path) -> None:
        """Raise OSError (ENOSPC) where the disk of `folder` has no room for these files."""
        needed, free = sum(self.digests[name].size for name in names), shutil.disk_usage(folder).free
        if needed > free:
            detail = f"needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB free"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), detail)

    def altered(self, name: str) -> ArtifactError:
        """The error for a file that differs from its digest."""
        return ArtifactError(
            f"{name} of {self.address} is not what its manifest describes (sha256 differs): "
            "it was altered after the export; publish it again"
        )

    def too_long(self, name: str) -> ArtifactError:
        """The error for a file that is longer than the manifest says."""
        return ArtifactError(
            f"{name} of {self.address} is longer than the {self.digests[name].size} bytes that its manifest says: "
            "it was altered after the export; publish it again"
        )


def unwritable(address: str, folder: Path, error: OSError) -> ArtifactError:
    """The error for a cache that cannot be written."""
    detail = f" ({error.filename})" if error.filename else ""
    return ArtifactError(
        f"{address} cannot be kept in {folder}: {error.strerror or error}{detail}; "
        "free some space, or name another folder with SEXTET_CACHE (URLs) or HF_HUB_CACHE (the Hub)"
    )
