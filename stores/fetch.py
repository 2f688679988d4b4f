"""Fetch: bring an artifact to a folder of this node, once per node and complete."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stores import filesystem, hub
from stores.address import HubAddress, remote


@dataclass(frozen=True)
class Fetched:
    """`pinned` names exactly this artifact, also after its branch or its URL has changed."""

    folder: Path
    pinned: str


def fetch(name: str, say: Callable[[str], None] = lambda _line: None) -> Fetched:
    """The folder of the artifact `name`: the folder itself, or a verified copy in a cache of this node.

    Processes that fetch it at the same time download it once. A local folder is left to `ModelArtifact.open`.
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
