"""Hub: a model repository of the Hugging Face Hub, or of a server that speaks its protocol (HF_ENDPOINT).

The huggingface_hub client does the work, with its cache, HF_TOKEN, HF_HUB_OFFLINE and resumed downloads.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from checkpoints import adapter
from checkpoints.frameworks import Progress
from pipelines.errors import CheckpointError
from pipelines.runtime.artifact import MANIFEST_NAME
from stores.hub import endpoint, explained
from stores.listing import unwritable

_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja", "README.md")
_SAFETENSORS = ("model.safetensors", "model-?????-of-?????.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model-?????-of-?????.bin")
_ADAPTERS = (adapter.SAFETENSORS, adapter.PICKLE)


@dataclass(frozen=True)
class Snapshot:
    """A downloaded revision; `commit` is that of the branch or tag that was asked for."""

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
    return any(fnmatch(file, pattern) for pattern in (*_TEXT_FILES, *_SAFETENSORS, *_PICKLES, *_ADAPTERS))


def download(model: str, revision: str | None, *, allow_pickle: bool, progress: Progress) -> Snapshot:
    """The files of `model` that an export reads: no pickles where there are safetensors, nothing of other frameworks.

    Without network, or with HF_HUB_OFFLINE, a revision in the cache is used. Raises CheckpointError, or ArtifactError
    where the cache cannot be written.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from stores.time_limit import NETWORK_ERROR, time_limit

    where = endpoint()
    at = f"{model}@{revision}" if revision else model
    try:
        with time_limit():
            info = HfApi(endpoint=where).model_info(model, revision=revision, files_metadata=True)
            files = _selection(at, {one.rfilename: one.size or 0 for one in info.siblings or []}, allow_pickle)
            progress(f"fetching {at} ({str(info.sha)[:8]}, {sum(files.values()) / 1e6:.0f} MB in {len(files)} files)")
            # By the name that was asked for: the cache remembers it for times without a network.
            return _snapshot(model, revision=revision, endpoint=where, allow_patterns=list(files))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:  # a gated one among the first
        raise CheckpointError(explained(error, model, revision)) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, NETWORK_ERROR) as error:  # HTTP errors among the last
        try:
            return _snapshot(model, revision=revision, local_files_only=True)
        except FileNotFoundError:  # LocalEntryNotFoundError
            raise CheckpointError(explained(error, model, revision)) from None
    except OSError as error:
        raise unwritable(at, Path(constants.HF_HUB_CACHE), error) from None


def _selection(name: str, sizes: dict[str, int], allow_pickle: bool) -> dict[str, int]:
    """The wanted files of a repository and their sizes in bytes."""

    def matching(patterns: Iterable[str]) -> dict[str, int]:
        # Only the top folder: fnmatch's * crosses slashes, and onnx/config.json is another thing.
        names = (file for file in sizes if "/" not in file)
        return {file: sizes[file] for file in names if any(fnmatch(file, pattern) for pattern in patterns)}

    if MANIFEST_NAME in sizes:
        raise CheckpointError(f"{name} is an artifact, not a checkpoint: name it as model: in cluster.yaml")
    if adapter.CONFIG_NAME in sizes:  # as for transformers, an adapter even where it is accompanied by whole weights
        safetensors, pickles = matching([adapter.SAFETENSORS]), matching([adapter.PICKLE])
    else:
        safetensors, pickles = matching(_SAFETENSORS), matching(_PICKLES)
    if not safetensors and pickles and not allow_pickle:
        raise CheckpointError(
            f"{name} has only pickled weights ({min(pickles)}), which can run code when loaded; "
            "choose a revision with safetensors, or trust them with --allow-pickle"
        )
    if not safetensors and not pickles:
        raise CheckpointError(f"{name} has no PyTorch weights (model.safetensors)")
    return matching(_TEXT_FILES) | (safetensors or pickles)


def _snapshot(model: str, **options: Any) -> Snapshot:
    from huggingface_hub import snapshot_download

    path = Path(snapshot_download(model, **options))
    return Snapshot(path, path.name)
