"""Releases that run side by side read each other's artifacts: earlier/ has some as earlier releases wrote them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines
from pipelines.errors import ArtifactError
from pipelines.runtime.artifact import MANIFEST_NAME, SCHEMA_VERSION, ModelArtifact
from stores.listing import Listing
from tests.artifacts import MANIFEST, write_artifact
from tests.pipelines.runtime import earlier_artifact

EARLIER = Path(__file__).parent / "earlier"


@pytest.mark.parametrize("folder", sorted(EARLIER.iterdir()), ids=lambda folder: folder.name)
def test_an_artifact_of_an_earlier_release_answers_as_it_did_there(folder: Path) -> None:
    artifact = ModelArtifact.open(folder / "artifact")
    asked, answered = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    pipeline = pipelines.load(artifact.path)

    assert folder.name == f"schema-{json.loads((artifact.path / MANIFEST_NAME).read_text())['schema_version']}"
    assert [rounded(pipeline(one["inputs"], **one["parameters"])) for one in asked] == rounded(answered)


def rounded(answer: Any) -> Any:
    """Scores to four digits: processors differ in the rest."""
    if isinstance(answer, dict):
        return {name: rounded(one) for name, one in answer.items()}
    if isinstance(answer, list):
        return [rounded(one) for one in answer]
    return round(answer, 4) if isinstance(answer, float) else answer


@pytest.mark.parametrize(
    ("architecture", "task"), [("bert", "text-classification"), ("qwen2", "text-generation"), ("marian", "translation")]
)
def test_an_earlier_release_reads_what_this_one_writes(
    architecture: str, task: str, exported: Callable[..., Path]
) -> None:
    folder = exported(architecture, task)
    read, ours = earlier_artifact.ModelArtifact.open(folder, task=task).manifest, ModelArtifact.open(folder).manifest

    assert (read.graphs, read.tokenizer.max_length) == (ours.graphs, ours.tokenizer.max_length)
    assert (read.labels, read.cache, read.chat_template) == (ours.labels, ours.cache, ours.chat_template)


def test_an_earlier_release_refuses_what_it_would_misread(tmp_path: Path) -> None:
    """Packed rows came later."""
    write_artifact(tmp_path, rows="packed")

    with pytest.raises(ArtifactError, match="unknown keys.*rows"):
        earlier_artifact.ModelArtifact.open(tmp_path)


@pytest.mark.parametrize("change", [{"schema_version": SCHEMA_VERSION + 1}, {"rows_of_tomorrow": "folded"}])
def test_what_a_later_release_wrote_is_one_line_with_the_remedy(tmp_path: Path, change: dict[str, Any]) -> None:
    write_artifact(tmp_path)
    text = json.dumps(json.loads((tmp_path / MANIFEST_NAME).read_text(encoding="utf-8")) | change)
    (tmp_path / MANIFEST_NAME).write_text(text, encoding="utf-8")
    name = next(iter(change))

    with pytest.raises(
        ArtifactError, match=rf"artifact\.json cannot be read.*{name}.*; update Sextet, or export it again"
    ):
        ModelArtifact.open(tmp_path)
    with pytest.raises(ArtifactError, match=rf"{name}.*; update Sextet, or publish it again"):
        Listing.of("s3://bucket/model", text.encode())


def test_a_manifest_has_only_what_differs_from_the_defaults() -> None:
    written = json.loads(replace(MANIFEST, labels=(), rows="packed").to_json())

    assert {"labels", "files", "schema_version", "rows"} <= written.keys()
    assert not {"cache", "quantization", "chat_template", "metrics"} & written.keys()
    assert written["tokenizer"] == {"max_length": 512}
