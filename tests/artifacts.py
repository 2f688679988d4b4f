"""Artifacts of a few bytes, whole but for a model that runs: nobody who opens or publishes one looks inside."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.runtime.artifact import MANIFEST_NAME, FileDigest, Manifest, Parity, Source, TokenizerSettings

ARCHITECTURES = {
    "text-classification": "bert",
    "question-answering": "distilbert",
    "token-classification": "bert",
    "translation": "marian",
    "summarization": "bart",
    "text-generation": "qwen2",
}
"""A small model of each task."""

MANIFEST = Manifest(
    task="text-classification",
    source=Source("starter:sentiment", "abc", "apache-2.0"),
    architecture="bert",
    precision="int8",
    device="cpu",
    graphs={"model": "model.onnx"},
    tokenizer=TokenizerSettings(max_length=512),
    parity=Parity(True, 64, 0.01, 1.0, "98% of labels"),
    labels=("negative", "positive"),
)
CARD = "---\nlicense: apache-2.0\n---\n# A card\n"


def write_artifact(folder: Path, graph: bytes = b"graph" * 1000, **changes: Any) -> Path:
    """A folder with a graph, a card and their manifest; `changes` are fields of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text(CARD)
    files = {path.name: FileDigest.of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_NAME}
    manifest = replace(MANIFEST, files=files, **changes)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return folder
