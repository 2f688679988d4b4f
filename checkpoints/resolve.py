"""Resolve: the name of a checkpoint becomes a checkpoint on this disk, checked and pinned.

A name is a folder, a *.gguf file, `starter:NAME`, or the id of a model on the Hugging Face Hub, perhaps `@revision`.
Where it names a PEFT adapter, the adapter is merged into its base.
"""

import hashlib
import inspect
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checkpoints import hub
from checkpoints.adapter import Adapter
from checkpoints.cache import made_once
from checkpoints.checkpoint import ResolvedCheckpoint, weight_files
from checkpoints.frameworks import Progress, quiet
from checkpoints.generations import other_generation
from checkpoints.gguf import metadata
from pipelines.errors import CheckpointError, first_line
from stores.address import HubAddress, remote

_STARTER = "starter:"
_AUTO_MAP = b'"auto_map"'


def resolve(
    checkpoint: str,
    revision: str | None = None,
    *,
    allow_pickle: bool = False,
    progress: Progress = lambda _line: None,
    above: tuple[Path, ...] = (),
) -> ResolvedCheckpoint:
    """Find `checkpoint`, downloading it where it is on the Hub and not in its cache.

    `above` are the folders of the adapters that it is the base of. Raises CheckpointError in one line that says what
    to do: not found, not reachable, pickled weights without `allow_pickle`, code of its own, unreadable files.
    """
    try:
        return _found(checkpoint, revision, allow_pickle, progress, above)
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        raise CheckpointError(f"{checkpoint} cannot be read: {error.strerror or first_line(error)}{file}") from error


def _found(
    checkpoint: str,
    revision: str | None,
    allow_pickle: bool,
    progress: Progress,
    above: tuple[Path, ...],
) -> ResolvedCheckpoint:
    path = Path(checkpoint).expanduser()
    if isinstance(address := remote(checkpoint), HubAddress) and not path.exists():
        if revision not in (None, address.revision):
            raise CheckpointError(f"{checkpoint} names a revision, and so does --revision {revision}; name it once")
        checkpoint, revision = address.repository, address.revision
        path = Path(checkpoint)
    if revision is not None and (checkpoint.startswith(_STARTER) or path.exists()):
        raise CheckpointError(f"{checkpoint} has no revisions, got {revision!r}; only models on the Hub have them")
    if checkpoint.startswith(_STARTER):
        from checkpoints.starters.starter import materialize

        return _folder(checkpoint, materialize(checkpoint.removeprefix(_STARTER)), allow_pickle, progress, above)
    if path.is_dir():
        return _folder(checkpoint, path, allow_pickle, progress, above)
    if path.suffix == ".gguf":
        return _gguf(checkpoint, path)
    if path.exists():
        raise CheckpointError(f"{checkpoint} is a file; allowed: a folder, a .gguf file, a Hub id or starter:NAME")
    if hub.is_id(checkpoint):
        snapshot = hub.download(checkpoint, revision, allow_pickle=allow_pickle, progress=progress)
        found = _folder(checkpoint, snapshot.path, allow_pickle, progress, above)
        return replace(found, revision=snapshot.commit, requested=revision)
    raise CheckpointError(
        f"there is no folder {checkpoint}, and it is not a Hub id (owner/name) or starter:NAME either"
    )


def _folder(
    name: str, path: Path, allow_pickle: bool, progress: Progress, above: tuple[Path, ...] = ()
) -> ResolvedCheckpoint:
    if (adapter := Adapter.read(name, path)) is not None:
        _check_trusted(name, adapter.weights, allow_pickle)
        return _merged(adapter, allow_pickle, progress, above)
    config = _config(name, path, progress)
    weights = weight_files(path)
    if not weights:
        raise CheckpointError(
            f"{name} has no PyTorch weights (model.safetensors); convert them with transformers first"
        )
    _check_trusted(name, weights[0], allow_pickle)
    return ResolvedCheckpoint(name, path, config, content_hash(path), licence=_licence(path))


def _check_trusted(name: str, weights: Path, allow_pickle: bool) -> None:
    if weights.suffix == ".bin" and not allow_pickle:
        raise CheckpointError(
            f"{name} has only pickled weights ({weights.name}), which can run code when loaded; "
            "convert them to safetensors, or trust them with --allow-pickle"
        )


def _merged(adapter: Adapter, allow_pickle: bool, progress: Progress, above: tuple[Path, ...]) -> ResolvedCheckpoint:
    """The checkpoint of an adapter merged into its base, which is resolved like any other; merged once."""
    above = (*above, adapter.path.resolve())
    if above[-1] in above[:-1]:
        raise CheckpointError(f"{adapter.name} is an adapter on top of itself")
    on_hub = not adapter.base.startswith(_STARTER) and not Path(adapter.base).expanduser().exists()
    try:
        base = resolve(
            adapter.base,
            adapter.base_revision if on_hub else None,
            allow_pickle=allow_pickle,
            progress=progress,
            above=above,
        )
    except CheckpointError as error:
        whole = weight_files(adapter.path)
        remedy = "; remove its adapter_config.json to use the whole weights beside it" if whole else ""
        raise CheckpointError(f"{adapter.name} is an adapter, and its base cannot be had: {error}{remedy}") from None
    code = _sha256(Path(inspect.getfile(Adapter)))
    ingredients = f"{base.revision} {content_hash(adapter.path)} {code} {version('peft')} {version('transformers')}"
    name = f"adapter-{hashlib.sha256(ingredients.encode()).hexdigest()[:16]}"

    def build(directory: Path) -> None:
        progress(f"merging {adapter.name} into {base.name}")
        if unread := adapter.unread():
            progress(f"{adapter.name} was saved by another release of PEFT, settings are ignored: {', '.join(unread)}")
        with quiet(progress):
            adapter.merge(base.path, directory, **base.loading)

    merged = _folder(adapter.name, made_once(name, build), allow_pickle, progress)
    return replace(merged, licence=_licence(adapter.path) or base.licence, base=f"{base.name}@{base.revision}")


def _config(name: str, path: Path, progress: Progress) -> Any:
    """The transformers config of a folder, refused where it asks for code of its own that transformers has not."""
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    file = path / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        model_type = raw["model_type"]
    except FileNotFoundError:
        raise CheckpointError(f"{name} is not a checkpoint: it has no config.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"config.json of {name} cannot be read ({type(error).__name__}: {error})") from None
    if model_type not in CONFIG_MAPPING and (other := other_generation(model_type)):
        raise CheckpointError(f"{name} is a {model_type!r} model, which needs {other}")
    asking = [one for one in (file, path / "tokenizer_config.json") if one.is_file() and _AUTO_MAP in one.read_bytes()]
    for config in asking:
        if config != file or model_type not in CONFIG_MAPPING:
            raise CheckpointError(f"{name} needs code of its own (auto_map in {config.name}), which is never run here")
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(f"{name} is a {model_type!r} model, which transformers {__version__} does not know")
    if asking:
        progress(f"{name} names code of its own, which is not run: transformers' {model_type!r} is taken")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each config class checks its values in its own way
        raise CheckpointError(f"config.json of {name} cannot be read: {first_line(error)}") from error


def _gguf(name: str, path: Path) -> ResolvedCheckpoint:
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if not path.is_file():
        raise CheckpointError(f"there is no file {name}")
    fields = metadata(path)
    architecture = fields.get("general.architecture")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        known = ", ".join(sorted(GGUF_SUPPORTED_ARCHITECTURES))
        raise CheckpointError(f"{name} holds a {architecture!r} model; GGUF files are read of: {known}")
    loading = {"gguf_file": path.name}
    try:
        config = AutoConfig.from_pretrained(path.parent, local_files_only=True, **loading)
    except Exception as error:  # the reader raises whatever a missing or odd field leads to
        raise CheckpointError(f"{name} cannot be read: {first_line(error)}") from error
    digest = "sha256:" + _sha256(path)
    return ResolvedCheckpoint(name, path.parent, config, digest, None, fields.get("general.license"), loading)


def content_hash(path: Path) -> str:
    """A digest over the names and contents of the files that make up a local checkpoint."""
    files = (file for file in sorted(path.iterdir()) if file.is_file() and hub.is_wanted(file.name))
    digests = "".join(f"{file.name} {_sha256(file)}\n" for file in files)
    return "sha256:" + hashlib.sha256(digests.encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _licence(path: Path) -> str | None:
    """`license:` of the model card, where there is one."""
    from huggingface_hub import metadata_load

    card = path / "README.md"
    try:
        licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except Exception:  # a card is prose: broken YAML in it says nothing about the weights
        licence = None
    return str(licence) if licence else None
