"""Graphs whose weights do not fit into one file: a protobuf holds no more than 2 GiB."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.build import ExportArgs, export_checkpoint

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("architecture", "task", "options"),
    [
        ("llama", "text-generation", {}),
        ("qwen2", "text-generation", {"precision": "int8"}),
        ("bert", "text-classification", {"precision": "fp16", "device": "cuda"}),
        ("roberta", "text-classification", {}),
        ("t5", "translation", {}),
    ],
)
def test_large_weights_lie_in_a_file_beside_the_graph(
    architecture: str,
    task: str,
    options: dict[str, Any],
    checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("export.graphs.graph.LARGEST_FILE_BYTES", 1000)
    source = str(checkpoint(architecture, task))

    artifact = export_checkpoint(ExportArgs(source, task, tmp_path / "artifact", **options))

    assert artifact.manifest.parity.passed
    graphs = set(artifact.manifest.graphs.values())
    beside = {f"{graph}.data" for graph in graphs}
    assert beside & set(artifact.manifest.files), "and its digest is in the manifest"
    assert all(
        (artifact.path / graph).stat().st_size < 300_000
        for graph in graphs
        if f"{graph}.data" in artifact.manifest.files
    )
