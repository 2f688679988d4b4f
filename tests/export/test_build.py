"""When an artifact is made anew, what a failed export says, and exports side by side."""

import logging
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from checkpoints.starters import starter
from export import build
from export.build import ExportArgs, export_all, export_checkpoint
from pipelines.errors import CheckpointError
from pipelines.runtime.artifact import MANIFEST_NAME, ModelArtifact

Make = Callable[..., Path]
TASK = "text-classification"


@pytest.fixture
def source(checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("bert", TASK), tmp_path / "checkpoint"))


def refused(source: str | Path, output: Path, task: str = TASK) -> str:
    with pytest.raises(CheckpointError) as error:
        export_checkpoint(ExportArgs(str(source), task, output))
    assert "\n" not in str(error.value)
    assert not output.exists()
    return str(error.value)


# --- what failed is named ---


def test_a_checkpoint_that_cannot_be_read_is_named_and_not_the_output(source: Path, tmp_path: Path) -> None:
    (source / "config.json").rename(source / "elsewhere.json")
    (source / "config.json").mkdir()
    file = source / "config.json"
    assert refused(source, tmp_path / "artifact") == f"{source} cannot be read: Is a directory ({file})"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that fails when it is read")
def test_a_lost_share_is_named_and_not_the_output(source: Path, tmp_path: Path) -> None:
    (source / "notes.txt").symlink_to("/proc/self/mem")
    assert refused(source, tmp_path / "artifact") == f"{source} cannot be read: Input/output error"


def test_a_missing_file_of_a_starter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "cache"))
    shutil.copytree(starter.FOLDER / "translation-en-fr", tmp_path / "starter" / "translation-en-fr")
    (tmp_path / "starter" / "translation-en-fr" / "README.md").unlink()
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "starter")
    said = refused("starter:translation-en-fr", tmp_path / "artifact", "translation")
    missing = tmp_path / "starter" / "translation-en-fr" / "README.md"
    assert said == f"starter:translation-en-fr cannot be read: No such file or directory ({missing})"


def test_a_file_outside_of_the_output_is_named_when_the_export_meets_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", "/srv/share/vocabulary")

    monkeypatch.setattr(build, "write_tokenizer", failing)
    assert refused(source, tmp_path / "artifact") == (
        f"{source} cannot be exported: /srv/share/vocabulary: Permission denied"
    )


# --- an artifact of another release is made again ---


@pytest.fixture
def artifact(source: Path, tmp_path: Path) -> ExportArgs:
    args = ExportArgs(str(source), TASK, tmp_path / "artifact")
    export_checkpoint(args)
    return args


def exported_again(args: ExportArgs) -> tuple[bool, list[str]]:
    said: list[str] = []
    export_all([args], said.append)
    return any(line.startswith("exporting ") for line in said), said


def test_an_artifact_is_kept_while_its_source_options_tools_and_code_stay(artifact: ExportArgs) -> None:
    assert exported_again(artifact) == (False, [f"checking {artifact.output}"])


def test_an_artifact_that_other_code_made_is_exported_again(
    artifact: ExportArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = build.made_with() | {"exporter": "sha256:0"}
    monkeypatch.setattr(build, "made_with", lambda: other)
    again, said = exported_again(artifact)
    assert again
    assert said[1] == f"{artifact.output} was made by another release of the exporter"
    assert ModelArtifact.open(artifact.output).manifest.versions["exporter"] == "sha256:0"
    assert exported_again(artifact)[0] is False


@pytest.mark.parametrize("before", [{"onnx": "1.0"}, {}])
def test_an_artifact_that_other_tools_or_an_older_release_made_is_exported_again(
    artifact: ExportArgs, before: dict[str, str]
) -> None:
    manifest = ModelArtifact.open(artifact.output).manifest
    versions = {name: one for name, one in {**manifest.versions, **before}.items() if name != "exporter"}
    (artifact.output / MANIFEST_NAME).write_text(replace(manifest, versions=versions).to_json())
    ModelArtifact.open(artifact.output)  # such a manifest is still read
    again, said = exported_again(artifact)
    assert again
    assert ("onnx 1.0; here is " in said[1]) == bool(before)


def test_the_digest_of_the_code_changes_with_any_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(build, "_CODE", (tmp_path / "code",))
    digests = []
    for text in ("a = 1\n", "a = 2\n"):
        (tmp_path / "code" / "a.py").write_text(text)
        digests.append(build.made_with.__wrapped__()["exporter"])
    assert digests[0] != digests[1]
    assert build.made_with()["exporter"] != digests[0]


# --- two tasks of one model ---


def test_two_tasks_that_generate_with_one_model_have_its_graphs_made_once(checkpoint: Make, tmp_path: Path) -> None:
    source = str(checkpoint("llama", "text-generation"))
    said: list[str] = []
    tasks = ("summarization", "text-generation")

    both = export_all([ExportArgs(source, task, tmp_path / task, precision="int8") for task in tasks], said.append)

    assert [line for line in said if line.startswith("taking")] == [f"taking the graphs of {tmp_path / tasks[0]}"]
    assert sum(line.startswith("converting") for line in said) == 1
    first, second = (ModelArtifact.open(one.path, task=task) for one, task in zip(both, tasks, strict=True))
    assert first.graph("model").read_bytes() == second.graph("model").read_bytes()
    assert second.manifest.parity.passed
    assert second.manifest.parity.inputs >= 64
    assert (first.manifest.cache, second.manifest.cache) == ("slots", "slots")
    assert first.manifest.prompt_template != second.manifest.prompt_template
    assert not exported_again(ExportArgs(source, tasks[1], second.path, precision="int8"))[0]


@pytest.mark.parametrize("change", ["precision", "checkpoint"])
def test_graphs_of_another_precision_or_checkpoint_are_not_taken(change: str, checkpoint: Make, tmp_path: Path) -> None:
    source = checkpoint("llama", "text-generation")
    other = Path(shutil.copytree(source, tmp_path / "other")) if change == "checkpoint" else source
    said: list[str] = []

    export_all(
        [
            ExportArgs(str(source), "summarization", tmp_path / "one", precision="int8"),
            ExportArgs(
                str(other), "text-generation", tmp_path / "two", precision="fp32" if change == "precision" else "int8"
            ),
        ],
        said.append,
    )

    assert sum(line.startswith("converting") for line in said) == 2


# --- two exports in threads of one process ---


def test_exports_in_threads_leave_the_process_as_it_was(checkpoint: Make, tmp_path: Path) -> None:
    before = (sys.stdout, sys.stderr, logging.root.manager.disable, LlamaRMSNorm.forward)
    both = [
        ExportArgs(str(checkpoint("llama", "text-generation")), "text-generation", tmp_path / "one"),
        ExportArgs(str(checkpoint("llama", "text-generation")), "text-generation", tmp_path / "two"),
    ]
    start = threading.Barrier(2)

    def run(args: ExportArgs) -> ModelArtifact:
        start.wait()
        return export_checkpoint(args)

    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(run, both))
    assert all(one.manifest.parity.passed and one.manifest.cache == "slots" for one in made)
    assert (sys.stdout, sys.stderr, logging.root.manager.disable, LlamaRMSNorm.forward) == before
