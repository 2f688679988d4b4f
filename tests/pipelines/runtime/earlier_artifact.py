"""ModelArtifact as commit 9553641 has it, but for the list of tasks: it reads artifacts where that release runs.

artifact.json           the manifest below; written last, so a folder without it is not an artifact
tokenizer.json          the fast tokenizer, complete (normalizer to decoder)
config.json             the checkpoint's transformers config
generation_config.json  where the checkpoint generates
*.onnx (+ .onnx_data)   the graphs named by `Manifest.graphs`
README.md               the model card
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pipelines.errors import ArtifactError

MANIFEST_NAME = "artifact.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class FileDigest:
    """What a file of the artifact must be: `sha256` in hex, `size` in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> Self:
        with path.open("rb") as file:
            return cls(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


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
    tokens that PyTorch chose.
    """

    passed: bool
    inputs: int
    largest_difference: float
    agreement: float
    threshold: str
    disagreements: tuple[str, ...] = ()
    perplexities: tuple[float, float] | None = None

    @property
    def perplexity_increase(self) -> float | None:
        """The export's perplexity over PyTorch's, minus one."""
        return self.perplexities[1] / self.perplexities[0] - 1 if self.perplexities else None


@dataclass(frozen=True)
class TokenizerSettings:
    """What tokenizer.json does not say: lengths in tokens, special ids, and how texts are decoded.

    `languages` maps a language code to the id of its token, for models that are told the target language by a
    forced first token (M2M100, mBART, NLLB).
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


@dataclass(frozen=True)
class Manifest:
    """artifact.json. `graphs` maps a role to a file: encoders and decoder-only models have `model`;
    encoder-decoders have `encoder` and `decoder` (without slots Optimum's merged decoder, switched by
    `use_cache_branch`). `cache` is `slots` where rows at different lengths are decoded together in one buffer
    (export.slot_graph, export.seq2seq_slot_graph), `plain` where the graph concatenates its cache.

    `quantization` says how int4 weights were made: `block_size` inputs of a channel share a scale, `accuracy_level` is
    MatMulNBits' (4: activations in int8).

    `prompt_template` holds `{text}` (and, for translation, `{src_lang}` and `{tgt_lang}`) where a decoder-only
    model does the task by instruction; it is the model's chat template, rendered once at export. `chat_template` is
    that template itself (Jinja, as transformers reads it) where the task is text-generation and the model has one.
    `metrics` is what `sextet evaluate` measured, by the name of the data file, with the sha256 of those that came later
    with a name of another (export.report).
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
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, KeyError or TypeError for anything that is not a manifest of this schema."""
        raw: dict[str, Any] = json.loads(text)
        if raw.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema_version {raw.get('schema_version')!r}, this release reads {SCHEMA_VERSION}")
        unknown = set(raw) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown keys {sorted(unknown)}")
        raw["source"] = Source(**raw["source"])
        raw["tokenizer"] = TokenizerSettings(**raw["tokenizer"])
        parity: dict[str, Any] = raw["parity"]
        pairs = {
            name: tuple(parity[name]) for name in ("disagreements", "perplexities") if parity.get(name) is not None
        }
        raw["parity"] = Parity(**parity | pairs)
        raw["labels"] = tuple(raw["labels"])
        raw["files"] = {name: FileDigest(**digest) for name, digest in raw["files"].items()}
        foreign = [name for name in raw["files"] if Path(name).name != name or name == MANIFEST_NAME]
        loose = [name for name in raw["graphs"].values() if name not in raw["files"]]
        if foreign or loose:
            raise ValueError(f"it names the file {(foreign + loose)[0]!r}, which is none of its own")
        return cls(**raw)


@dataclass(frozen=True)
class ModelArtifact:
    """An artifact on disk whose manifest was read and whose files were checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, task: str | None = None, allow_unverified: bool = False) -> Self:
        """Read and check a folder; raises ArtifactError in one line that names the folder and the remedy.

        `allow_unverified` serves an artifact whose parity check failed; it never excuses altered files.
        """
        path = Path(path)
        try:
            manifest = Manifest.from_json((path / MANIFEST_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(
                f"{path} is not a model artifact (no {MANIFEST_NAME}); make it with `sextet export`"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path / MANIFEST_NAME} cannot be read ({error}); export it again") from None
        if task is not None and manifest.task != task:
            raise ArtifactError(f"{path} was exported for {manifest.task}, not for {task}")
        for name, expected in manifest.files.items():
            if not (path / name).is_file():
                raise ArtifactError(f"{path} lacks {name}; export it again")
            if FileDigest.of(path / name) != expected:
                raise ArtifactError(f"{path / name} was altered since its export (sha256 differs); export it again")
        if not manifest.parity.passed and not allow_unverified:
            raise ArtifactError(
                f"{path} failed its parity check with PyTorch ({manifest.parity.threshold}); "
                "export it with another precision, or set allow_unverified: true"
            )
        return cls(path, manifest)

    def graph(self, role: str) -> Path:
        """The ONNX file of a role: `model`, `encoder` or `decoder`."""
        if role not in self.manifest.graphs:
            raise ArtifactError(f"{self.path} has no {role!r} graph; it has {sorted(self.manifest.graphs)}")
        return self.path / self.manifest.graphs[role]

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
