"""Hub: artifacts in repositories of the Hugging Face Hub, or of a server that speaks its protocol.

The huggingface_hub client does the work, with its cache (HF_HUB_CACHE) and a lock for every file, HF_TOKEN,
HF_ENDPOINT and HF_HUB_OFFLINE. Its errors become one line.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import ArtifactError, ConfigurationError, first_line
from pipelines.runtime.artifact import MANIFEST_NAME
from pipelines.runtime.package import install_command
from stores.address import HubAddress
from stores.listing import Listing, unwritable


def endpoint() -> str:
    """HF_ENDPOINT as it is now, else the Hub's; without a trailing slash, as huggingface_hub reads it."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def fetch(address: HubAddress, say: Callable[[str], None]) -> tuple[Path, HubAddress]:
    """The folder of an artifact in the client's cache, complete, and its address by commit.

    Downloads files that the cache lacks or that differ from the manifest. Without a network, or with HF_HUB_OFFLINE,
    the cache must hold all files. Raises ArtifactError.
    """
    try:
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError as error:
        raise missing_package(str(address), error) from None
    from requests.exceptions import RequestException

    try:
        manifest = _file(address, MANIFEST_NAME)
        folder = manifest.parent
        pinned = HubAddress(address.repository, folder.name)
        listing = Listing.of(str(address), manifest.read_bytes())
        missing = listing.missing(folder)
        if missing:
            say(f"fetching {address} ({pinned.revision[:8]}, {listing.size / 1e6:.1f} MB in {len(missing)} files)")
            listing.require_space(missing, folder)
            _require_length(pinned, listing, missing)
        for name in missing:
            _file(pinned, name)
            if not listing.is_whole(folder, name):
                _file(pinned, name, force_download=True)  # the cached file was damaged
            if not listing.is_whole(folder, name):
                raise listing.altered(name)
        return folder, pinned
    except HFValidationError:
        raise ConfigurationError(f"{address} names no repository; allowed: owner/name@revision") from None
    except (HfHubHTTPError, RequestException, ConnectionError, FileNotFoundError) as error:
        raise ArtifactError(explained(error, address.repository, address.revision)) from None
    except OSError as error:
        raise unwritable(str(address), Path(constants.HF_HUB_CACHE), error) from None


def explained(error: Exception, model: str, revision: str | None) -> str:
    """One line for an error of huggingface_hub or of the network: why a repository or revision is not available."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = endpoint()
    if isinstance(error, GatedRepoError):
        return f"{model} is gated: accept its terms at {where}/{model} and set HF_TOKEN to a token of that account"
    if isinstance(error, RepositoryNotFoundError):
        return f"{where} has no model {model}, or it is private; check the id, or set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"{model} has no revision {revision!r} on {where}"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{model} is not a model artifact (no {MANIFEST_NAME}, or it lacks a file); `sextet export` makes one"
    asked = f"{model} at revision {revision!r}" if revision else model
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{where} refuses {asked} ({status}); set HF_TOKEN to a token that may read it"
    if constants.HF_HUB_OFFLINE:
        why = f"HF_HUB_OFFLINE is set and {asked} is not in the cache {constants.HF_HUB_CACHE}"
        return f"{why}; unset it once to download the model"
    reason = first_line(error.__cause__ or error)
    return (
        f"{where} cannot be reached for {asked} ({reason[:120]}), and it is not in the cache; "
        "check the network, or set HF_ENDPOINT"
    )


def missing_package(address: str, error: ModuleNotFoundError) -> ConfigurationError:
    """The error for an address whose client is not installed."""
    return ConfigurationError(f"{address} needs {error.name}: {install_command('remote')}")


def _require_length(address: HubAddress, listing: Listing, names: list[str]) -> None:
    """Raise ArtifactError for a file that is longer on the Hub than its manifest says, before it is downloaded."""
    from huggingface_hub import HfApi, constants

    info = HfApi(endpoint=endpoint()).model_info(
        address.repository, revision=address.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
    for name in names:
        if sizes.get(name, 0) > listing.digests[name].size:
            raise listing.too_long(name)


def _file(address: HubAddress, name: str, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # public, but not re-exported

    disable_progress_bars()  # one line has reported files and bytes
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a retry is not an error yet
    return Path(hf_hub_download(address.repository, name, revision=address.revision, endpoint=endpoint(), **options))
