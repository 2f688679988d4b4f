"""Hub: a model repository on the Hugging Face Hub, or on a server that speaks its protocol (HF_ENDPOINT).

The real huggingface_hub client does the work: its cache, HF_TOKEN, HF_HUB_OFFLINE, resumed downloads.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError

_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja", "README.md")
_SAFETENSORS = ("model.safetensors", "model-?????-of-?????.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model-?????-of-?????.bin")


@dataclass(frozen=True)
class Snapshot:
    """A downloaded revision: `commit` is what the branch, tag or commit that was asked for stood for."""

    path: Path
    commit: str


def is_id(name: str) -> bool:
    """Whether `name` has the form of a model's id: `name` or `owner/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not re-exported

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_wanted(file: str) -> bool:
    """Whether an export reads a file of this name."""
    return any(fnmatch(file, pattern) for pattern in (*_TEXT_FILES, *_SAFETENSORS, *_PICKLES))


def download(model: str, revision: str | None, *, allow_pickle: bool, progress: Callable[[str], None]) -> Snapshot:
    """The files of `model` that an export reads: no pickles where there are safetensors, nothing of other frameworks.

    Without network, or with HF_HUB_OFFLINE, a revision in the cache is used. Raises CheckpointError.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from requests.exceptions import RequestException

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")  # as huggingface_hub reads it
    at = f"{model}@{revision}" if revision else model
    try:
        info = HfApi(endpoint=endpoint).model_info(model, revision=revision, files_metadata=True)
        files = _selection(at, {one.rfilename: one.size or 0 for one in info.siblings or []}, allow_pickle)
        progress(f"fetching {at} ({str(info.sha)[:8]}, {sum(files.values()) / 1e6:.0f} MB in {len(files)} files)")
        # By the name that was asked for, which the cache remembers for times without a network.
        return _snapshot(model, revision=revision, endpoint=endpoint, allow_patterns=list(files))
    except GatedRepoError:
        raise CheckpointError(
            f"{model} is gated: accept its terms at {endpoint}/{model} and set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{endpoint} has no model {model}, or it is private; check the id, or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{model} has no revision {revision!r} on {endpoint}") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, RequestException) as error:  # HTTP errors among the last
        return _from_cache(model, revision, endpoint, error)


def _selection(name: str, sizes: dict[str, int], allow_pickle: bool) -> dict[str, int]:
    """The wanted files of a repository and their sizes in bytes."""

    def matching(patterns: Iterable[str]) -> dict[str, int]:
        # Only the top folder: fnmatch's * crosses slashes, and onnx/config.json is another thing.
        names = (file for file in sizes if "/" not in file)
        return {file: sizes[file] for file in names if any(fnmatch(file, pattern) for pattern in patterns)}

    safetensors, pickles = matching(_SAFETENSORS), matching(_PICKLES)
    if not safetensors and pickles and not allow_pickle:
        raise CheckpointError(
            f"{name} has only pickled weights ({min(pickles)}), which can run code when loaded; "
            "choose a revision with safetensors, or trust them with --allow-pickle"
        )
    if not safetensors and not pickles:
        raise CheckpointError(f"{name} has no PyTorch weights (model.safetensors)")
    return matching(_TEXT_FILES) | (safetensors or pickles)


def _from_cache(model: str, revision: str | None, endpoint: str, cause: Exception) -> Snapshot:
    from huggingface_hub import constants

    try:
        return _snapshot(model, revision=revision, local_files_only=True)
    except FileNotFoundError:  # LocalEntryNotFoundError
        asked = f"{model} at revision {revision!r}" if revision else model
        if constants.HF_HUB_OFFLINE:
            why = f"HF_HUB_OFFLINE is set and {asked} is not in the cache {constants.HF_HUB_CACHE}"
            raise CheckpointError(f"{why}; unset it once to download the model") from None
        reason = str(cause).strip().split("\n", 1)[0]
        raise CheckpointError(
            f"{endpoint} cannot be reached for {asked} ({reason[:120]}), and it is not in the cache; "
            "check the network, or set HF_ENDPOINT"
        ) from None


def _snapshot(model: str, **options: Any) -> Snapshot:
    from huggingface_hub import snapshot_download

    path = Path(snapshot_download(model, **options))
    return Snapshot(path, path.name)
