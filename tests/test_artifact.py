"""ModelArtifact: what a folder must be before it is served."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.artifact import MANIFEST_NAME, FileDigest, Manifest, ModelArtifact, Parity, Source, TokenizerSettings
from pipelines.errors import ArtifactError

MANIFEST = Manifest(
    task="text-classification",
    source=Source("starter:sentiment", "abc", "MIT"),
    architecture="bert",
    precision="int8",
    device="cpu",
    graphs={"model": "model.onnx"},
    tokenizer=TokenizerSettings(max_length=512),
    parity=Parity(True, 64, 0.01, 1.0, "98% of labels"),
    labels=("부정", "긍정"),
)


def write(folder: Path, manifest: Manifest) -> Path:
    (folder / "model.onnx").write_bytes(b"graph")
    files = {"model.onnx": FileDigest.of(folder / "model.onnx")}
    (folder / MANIFEST_NAME).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
    return folder


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    artifact = ModelArtifact.open(write(tmp_path, MANIFEST), task="text-classification")

    assert artifact.manifest.labels == ("부정", "긍정")
    assert replace(artifact.manifest, files={}) == MANIFEST
    assert artifact.graph("model") == tmp_path / "model.onnx"


def test_a_folder_without_a_manifest_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a model artifact.*sextet export"):
        ModelArtifact.open(tmp_path)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, MANIFEST) / "model.onnx").write_bytes(b"other")

    with pytest.raises(ArtifactError, match=r"model\.onnx was altered"):
        ModelArtifact.open(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, MANIFEST) / "model.onnx").unlink()

    with pytest.raises(ArtifactError, match=r"lacks model\.onnx"):
        ModelArtifact.open(tmp_path)


def test_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exported for text-classification, not for translation"):
        ModelArtifact.open(write(tmp_path, MANIFEST), task="translation")


def test_a_failed_parity_is_refused_unless_allowed(tmp_path: Path) -> None:
    write(tmp_path, replace(MANIFEST, parity=replace(MANIFEST.parity, passed=False)))

    with pytest.raises(ArtifactError, match="failed its parity check"):
        ModelArtifact.open(tmp_path)
    assert not ModelArtifact.open(tmp_path, allow_unverified=True).manifest.parity.passed


@pytest.mark.parametrize(
    "change", [{"schema_version": 1}, {"surprise": 1}, {"tokenizer": None}, {"parity": {"passed": True}}]
)
def test_a_manifest_of_another_shape_is_refused_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    write(tmp_path, MANIFEST)
    raw = json.loads((tmp_path / MANIFEST_NAME).read_text(encoding="utf-8"))
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(raw | change), encoding="utf-8")

    with pytest.raises(ArtifactError, match="cannot be read.*export it again") as caught:
        ModelArtifact.open(tmp_path)
    assert "\n" not in str(caught.value)
