"""Artifacts with packed rows, on a machine without CUDA: the same graph, with a stand-in for its attention."""

import json
import shutil
from pathlib import Path

from export.graphs.encoders.stand_in import write_stand_in
from pipelines.runtime.artifact import MANIFEST_NAME, FileDigest


def on_cpu(artifact: Path, folder: Path) -> Path:
    """A copy of an artifact with packed rows that a CPU can run, in the new `folder`."""
    shutil.copytree(artifact, folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    graph = folder / manifest["graphs"]["model"]
    write_stand_in(artifact / graph.name, graph)
    digest = FileDigest.of(graph)
    manifest["files"][graph.name] = {"sha256": digest.sha256, "size": digest.size}
    manifest["device"] = "cpu"
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    return folder
