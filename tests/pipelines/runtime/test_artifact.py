"""ModelArtifact: what a folder must be before it is served."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ArtifactError
from pipelines.runtime.artifact import MANIFEST_NAME, ModelArtifact, positions
from tests.artifacts import MANIFEST, write_artifact

NOBODY = 65534


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path, labels=("부정", "긍정"))
    artifact = ModelArtifact.open(folder, task="text-classification")

    assert artifact.manifest.labels == ("부정", "긍정")
    assert replace(artifact.manifest, files={}) == replace(MANIFEST, labels=("부정", "긍정"))
    assert artifact.graph("model") == tmp_path / "model.onnx"


def test_a_folder_without_a_manifest_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a model artifact.*sextet export"):
        ModelArtifact.open(tmp_path)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    (write_artifact(tmp_path) / "model.onnx").write_bytes(b"other")

    with pytest.raises(ArtifactError, match=r"model\.onnx was altered"):
        ModelArtifact.open(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    (write_artifact(tmp_path) / "model.onnx").unlink()

    with pytest.raises(ArtifactError, match=r"lacks model\.onnx"):
        ModelArtifact.open(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "artifact.json"])
def test_a_file_that_may_not_be_read_is_one_line(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, unprivileged(Path(folder)):
        write_artifact(Path(folder, "model"))
        Path(folder, "model", name).chmod(0)
        with pytest.raises(ArtifactError) as refused:
            ModelArtifact.open(Path(folder, "model"))
    assert str(refused.value) == f"{folder}/model/{name} cannot be read: Permission denied"


def test_a_file_of_a_disk_that_fails_is_one_line(tmp_path: Path) -> None:
    file = write_artifact(tmp_path) / "model.onnx"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # nothing can be read at its beginning

    with pytest.raises(ArtifactError, match=r"model\.onnx cannot be read: Input/output error$"):
        ModelArtifact.open(tmp_path)


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Root may read everything: act as nobody, who may write to `folder`."""
    user = os.geteuid()
    if user == 0:
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.onnx", "model.onnx is not a model artifact (no artifact.json)"),
        ("a" * 300, "artifact.json cannot be read: File name too long"),
    ],
)
def test_what_is_no_folder_is_one_line(tmp_path: Path, name: str, reason: str) -> None:
    write_artifact(tmp_path)

    with pytest.raises(ArtifactError) as refused:
        ModelArtifact.open(tmp_path / name)

    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exported for text-classification, not for translation"):
        ModelArtifact.open(write_artifact(tmp_path), task="translation")


def test_a_failed_parity_is_refused_unless_allowed(tmp_path: Path) -> None:
    write_artifact(tmp_path, parity=replace(MANIFEST.parity, passed=False))

    with pytest.raises(ArtifactError, match="failed its parity check"):
        ModelArtifact.open(tmp_path)
    assert not ModelArtifact.open(tmp_path, allow_unverified=True).manifest.parity.passed


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 0},
        {"schema_version": "2"},
        {"surprise": 1},
        {"tokenizer": None},
        {"parity": {"passed": True}},
    ],
)
def test_a_manifest_of_another_shape_is_refused_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    write_artifact(tmp_path)
    raw = json.loads((tmp_path / MANIFEST_NAME).read_text(encoding="utf-8"))
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(raw | change), encoding="utf-8")

    with pytest.raises(ArtifactError, match="cannot be read.*export it again") as caught:
        ModelArtifact.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": {"rope_type": "longrope"}, "original_max_position_embeddings": 64},
        {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64},
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64}},
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default"},
                "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 64},
            }
        },
    ],
)
def test_longrope_bounds_the_positions_as_either_generation_of_transformers_writes_it(config: dict[str, Any]) -> None:
    assert positions(config | {"max_position_embeddings": 2048}, ["max_position_embeddings"]) == 64


def test_another_rotation_bounds_no_positions() -> None:
    config = {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 64}}
    assert positions(config | {"max_position_embeddings": 2048}, ["max_position_embeddings"]) == 2048
