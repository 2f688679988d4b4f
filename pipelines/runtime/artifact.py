"""ModelArtifact: the folder that export writes and pipelines read.

artifact.json           the manifest below; written last, so a folder without it is not an artifact
tokenizer.json          the fast tokenizer, complete (normalizer to decoder)
config.json             the checkpoint's transformers config
generation_config.json  where the checkpoint generates
*.onnx (+ .onnx_data)   the graphs named by `Manifest.graphs`
README.md               the model card
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pipelines.errors import ArtifactError, ConfigurationError, InvalidInputError, UnknownKeyError
from pipelines.schema import convert

MANIFEST_NAME = "artifact.json"
Precision = Literal["fp32", "fp16", "int8", "int4"]
Optimization = Literal["O1", "O2", "O3", "O4"]
"""The levels of Optimum's ORTOptimizer."""
Exporter = Literal["optimum", "transformers5"]
"""What makes artifacts: Optimum beside transformers 4, or Sextet alone beside transformers 5."""
SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Schema 1 has no `chat_template`: its text-generation models answer no chats."""
VERSION_DIGITS = 12


_TICK_NS = 50_000_000
_DIGESTS: dict[tuple[int, ...], str] = {}
"""sha256 by `_state`: one entry for each file of the artifacts that this process has opened."""


def _state(path: Path) -> tuple[int, ...]:
    """Changes when the file is written or replaced: device, inode, size, and times of the last change in ns."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True)
class FileDigest:
    """The expected content of a file of the artifact: `sha256` in hex, `size` in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Hash the file; cached for a file that has not changed since this process read it.

        A replica verifies a fetched artifact and then opens it, and reads its gigabytes once.
        """
        state = _state(path)
        if state not in _DIGESTS:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            # Two writes within one tick of the filesystem's clock leave the same times.
            if _state(path) != state or time.time_ns() - max(state[-2:]) < _TICK_NS:
                return cls(digest, path.stat().st_size)
            _DIGESTS[state] = digest
        return cls(_DIGESTS[state], state[2])


@dataclass(frozen=True)
class Source:
    """Where the weights came from. `revision` is a commit on the Hub, or a content hash for local files;
    `requested` is the branch, tag or commit that was asked for. `base` is NAME@REVISION of the checkpoint that an
    adapter was merged into.
    """

    checkpoint: str
    revision: str | None = None
    licence: str | None = None
    requested: str | None = None
    base: str | None = None

    @property
    def name(self) -> str:
        """What clients call the model: its checkpoint; of a local folder, the folder's name."""
        is_folder = self.checkpoint.startswith((".", "/", "~"))
        return self.checkpoint.rstrip("/").rpartition("/")[2] if is_folder else self.checkpoint


@dataclass(frozen=True)
class Parity:
    """What was compared with PyTorch at export, and the verdict.

    `largest_difference` is absolute, over unit-scale logits. `agreement` (0..1) counts equal labels, spans or
    greedy tokens on the confident inputs; `disagreements` names the inputs that differ. `perplexities` are those of
    PyTorch and of the export where it generates: a decoder-only model's of sample texts, an encoder-decoder's of the
    tokens that PyTorch chose. `compared_on` is the execution provider that ran the export.
    """

    passed: bool
    inputs: int
    largest_difference: float
    agreement: float
    threshold: str
    disagreements: tuple[str, ...] = ()
    perplexities: tuple[float, float] | None = None
    compared_on: str = "CPU"

    @property
    def perplexity_increase(self) -> float | None:
        """The export's perplexity over PyTorch's, minus one."""
        return self.perplexities[1] / self.perplexities[0] - 1 if self.perplexities else None


@dataclass(frozen=True)
class TokenizerSettings:
    """What tokenizer.json does not say: lengths in tokens, special ids, and how texts are decoded.

    `languages` maps a language code to the id of its token, for models that are told the target language by a
    forced first token (M2M100, mBART, NLLB). That of the source stands before its text, or with `language_last` after
    its end.

    `longest` is the most tokens that a model without position embeddings reads (T5); texts above `max_length`, which
    its tokenizer states, are read with a warning. None: `max_length`.
    """

    max_length: int
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    cls_token_id: int | None = None
    unk_token_id: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    clean_up_tokenization_spaces: bool = False
    token_type_ids: bool = False
    languages: Mapping[str, int] = field(default_factory=dict)
    language_last: bool = False
    longest: int | None = None

    @property
    def readable(self) -> int:
        """The most tokens of a text that is not cut."""
        return self.longest or self.max_length


class NewerManifestError(ValueError):
    """A manifest that says what this release does not know."""


def remedy(error: ValueError, verb: str) -> str:
    """What an operator does about a manifest that cannot be read, `export` or `publish` it again among it."""
    return f"{'update Sextet, or ' if isinstance(error, NewerManifestError) else ''}{verb} it again"


@dataclass(frozen=True)
class Manifest:
    """artifact.json. `graphs` maps a role to a file: encoders and decoder-only models have `model`;
    encoder-decoders have `encoder` and `decoder` (without slots Optimum's merged decoder, switched by
    `use_cache_branch`). `cache` is `slots` where rows at different lengths are decoded together in one buffer
    (export.graphs.slot_graph, export.graphs.seq2seq_slot_graph), `plain` where the graph concatenates its cache.

    `rows` is `packed` where the graph reads the tokens of all rows of a batch one after the other, without padding
    (export.graphs.encoders.packed), and runs on `device` alone.

    `quantization` says how int4 weights were made: `block_size` inputs of a channel share a scale, `accuracy_level` is
    MatMulNBits' (4: activations in int8).

    `prompt_template` holds `{text}` (and, for translation, `{src_lang}` and `{tgt_lang}`) where a decoder-only
    model does the task by instruction; it is the model's chat template, rendered once at export. `chat_template` is
    that template itself (Jinja, as transformers reads it) where the task is text-generation and the model has one.
    `metrics` is what `sextet evaluate` measured, by the name of the data file, with the sha256 of those that came later
    with a name of another (evaluation.report).

    Two releases read each other's manifests. A field that is added has a default under which it may be absent, and is
    written only where it differs: a release that lacks the field reads every artifact that does not need it, and
    refuses the others. A change that an older release would misread raises SCHEMA_VERSION.
    """

    task: str
    source: Source
    architecture: str
    precision: str
    device: str
    graphs: Mapping[str, str]
    tokenizer: TokenizerSettings
    parity: Parity
    optimization: str | None = None
    cache: str = "plain"
    rows: str = "padded"
    quantization: Mapping[str, int] = field(default_factory=dict)
    opset: int | None = None
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    prompt_template: str | None = None
    chat_template: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(_plain(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError for anything that is not a manifest, NewerManifestError for one of a later release."""
        raw: Any = json.loads(text)
        if isinstance(raw, dict):
            version = raw.get("schema_version")
            if type(version) is not int or version not in READABLE:
                kind = NewerManifestError if isinstance(version, int) and version > SCHEMA_VERSION else ValueError
                raise kind(f"schema_version {version!r}, this release reads {' and '.join(map(str, READABLE))}")
            raw = raw | {"schema_version": SCHEMA_VERSION}  # it has every key of schema 1
        try:
            manifest: Self = convert(raw, cls)
        except UnknownKeyError as error:
            raise NewerManifestError(str(error)) from None
        except InvalidInputError as error:
            raise ValueError(str(error)) from None
        foreign = [name for name in manifest.files if Path(name).name != name or name == MANIFEST_NAME]
        loose = [name for name in manifest.graphs.values() if name not in manifest.files]
        if foreign or loose:
            raise ValueError(f"it names the file {(foreign + loose)[0]!r}, which is none of its own")
        return manifest


@dataclass(frozen=True)
class AdapterFacts:
    """What is said of an adapter that is loaded beside a model.

    `base` is what it calls its base; `digest` is the sha256 of its weights, `rank` the largest of its layers,
    `memory_bytes` what its weights take.
    """

    name: str
    base: str
    digest: str
    rank: int
    memory_bytes: int

    @property
    def version(self) -> str:
        """Twelve digits of the digest."""
        return self.digest[:VERSION_DIGITS]


@dataclass(frozen=True)
class ModelArtifact:
    """An artifact on disk whose manifest was read and whose files were checked."""

    path: Path
    manifest: Manifest
    served_as: str | None = None
    """The name that it is served by beside others of its task."""
    adapter: AdapterFacts | None = None
    """The adapter that changes its answers."""
    adapters: tuple[AdapterFacts, ...] = ()
    """Those that are loaded beside it, in the order of their numbers: a row's `adapter` is one of them from 1 on."""

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.served_as or self.manifest.source.name

    @classmethod
    def open(cls, path: str | Path, *, task: str | None = None, allow_unverified: bool = False) -> Self:
        """Read and check a folder; raises ArtifactError in one line that names the folder and the remedy.

        `allow_unverified` serves an artifact whose parity check failed; it never excuses altered files.
        """
        path = Path(path)
        try:
            manifest = Manifest.from_json((path / MANIFEST_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"{path} is not a model artifact (no {MANIFEST_NAME}); make it with `sextet export`"
            ) from None
        except OSError as error:
            raise ArtifactError(f"{path / MANIFEST_NAME} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ArtifactError(f"{path / MANIFEST_NAME} cannot be read ({error}); {remedy(error, 'export')}") from None
        if task is not None and manifest.task != task:
            raise ArtifactError(f"{path} was exported for {manifest.task}, not for {task}")
        for name, expected in manifest.files.items():
            try:
                found = FileDigest.of(path / name) if (path / name).is_file() else None
            except OSError as error:
                raise ArtifactError(f"{path / name} cannot be read: {error.strerror}") from None
            if found is None:
                raise ArtifactError(f"{path} lacks {name}; export it again")
            if found != expected:
                raise ArtifactError(f"{path / name} was altered since its export (sha256 differs); export it again")
        if not manifest.parity.passed and not allow_unverified:
            raise ArtifactError(
                f"{path} failed its parity check with PyTorch ({manifest.parity.threshold}); "
                "export it with another precision, or set allow_unverified: true"
            )
        return cls(path, manifest)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the manifest, which holds those of all files."""
        return FileDigest.of(self.path / MANIFEST_NAME).sha256

    @property
    def version(self) -> str:
        """Twelve digits of the digest."""
        return self.digest[:VERSION_DIGITS]

    def graph(self, role: str) -> Path:
        """The ONNX file of a role: `model`, `encoder` or `decoder`."""
        if role not in self.manifest.graphs:
            raise ArtifactError(f"{self.path} has no {role!r} graph; it has {sorted(self.manifest.graphs)}")
        return self.path / self.manifest.graphs[role]

    def check_device(self, device: str) -> None:
        """Raise ConfigurationError for an artifact of a precision that a device does not compute in."""
        if device != "cpu" and self.manifest.precision == "int8":
            raise ConfigurationError(
                f"device is {device!r}, but {self.path} has the precision int8, which is for the CPU; "
                "export it with --precision fp16 --device cuda"
            )

    def config(self) -> dict[str, Any]:
        """The checkpoint's transformers config."""
        return self._json("config.json")

    def generation_config(self) -> dict[str, Any]:
        """The checkpoint's generation_config; empty where it has none."""
        return self._json("generation_config.json")

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return content


def positions(config: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The most positions of a model, by the first of `names` that its config has; None for a model without a bound.

    With longrope it is the first length: beyond it, transformers rotates all tokens of a text in another way, from the
    first one on, and a graph holds one way.
    """
    found = next((int(config[name]) for name in names if config.get(name)), None)
    for scaling in rotations(config):
        first = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
        if found is not None and first and scaling.get("rope_type", scaling.get("type")) == "longrope":
            found = min(found, int(first))
    return found


def rotations(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How a model rotates positions: `rope_scaling` of its config, which transformers 5 calls `rope_parameters` and may
    hold one for each kind of layer.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    of_layers = [one for one in given.values() if isinstance(one, Mapping)]
    return of_layers or [given]


def _plain(value: Any) -> Any:
    """`value` as JSON has it; of a dataclass the fields that differ from their defaults, and those of _ALWAYS."""
    if is_dataclass(value):
        return {
            one.name: _plain(getattr(value, one.name))
            for one in fields(value)
            if one.name in _ALWAYS or getattr(value, one.name) != _default(one)
        }
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _default(one: "Field[Any]") -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


_ALWAYS = ("labels", "files", "schema_version")
"""The first release of schema 2 asks for these."""
