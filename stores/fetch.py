"""Fetch: an artifact from wherever it lies to a folder of this node, once per node and whole."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stores import filesystem, hub
from stores.address import HubAddress, remote


@dataclass(frozen=True)
class Fetched:
    """`pinned` names the same artifact for ever, whatever happens to a branch or behind a URL meanwhile."""

    folder: Path
    pinned: str


def fetch(name: str, say: Callable[[str], None] = lambda _line: None) -> Fetched:
    """The folder of the artifact `name`: itself, or a copy in a cache of this node, compared with its manifest.

    Processes that ask at the same time download it once. A folder is returned as it is: `ModelArtifact.open` checks it.
    Raises ArtifactError or ConfigurationError in one line: not there, no access, no network, no space, altered.
    """
    address = remote(name)
    if address is None:
        folder = Path(name).absolute()
        return Fetched(folder, str(folder))
    if isinstance(address, HubAddress):
        folder, revision = hub.fetch(address, say)
        return Fetched(folder, str(revision))
    folder, pinned = filesystem.fetch(address, say)
    return Fetched(folder, str(pinned))
