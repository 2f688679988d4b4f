"""An artifact appears whole or not at all, and replaces nothing that is not ours."""

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.build import ExportArgs, export_checkpoint
from export.staging import check_output, place, staging
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact

Make = Callable[..., Path]


def export(source: Path, output: Path) -> ModelArtifact:
    return export_checkpoint(ExportArgs(str(source), "text-classification", output))


def put(artifact: Path, output: Path, **changes: Any) -> None:
    """Publish the files of `artifact` again, as `output`."""
    manifest = replace(ModelArtifact.open(artifact).manifest, **changes)
    with staging(output) as folder:
        finished = folder / "artifact"
        shutil.copytree(artifact, finished, ignore=shutil.ignore_patterns("artifact.json"))
        place(finished, manifest, output)


@pytest.fixture
def bert(checkpoint: Make) -> Path:
    return checkpoint("bert", "text-classification")


def test_an_artifact_holds_what_its_manifest_says_and_nothing_else(exported: Make) -> None:
    artifact = ModelArtifact.open(exported("bert", "text-classification"), task="text-classification")

    files = {path.name for path in artifact.path.iterdir()}
    assert files == {"artifact.json", "README.md", "config.json", "model.onnx", "tokenizer.json"}
    assert set(artifact.manifest.files) == files - {"artifact.json"}


def test_the_card_says_where_it_came_from_and_how_far_it_agrees(exported: Make) -> None:
    artifact = ModelArtifact.open(exported("bert", "text-classification"))

    card = (artifact.path / "README.md").read_text()
    assert f"`{artifact.manifest.source.checkpoint}`" in card
    assert f"`{artifact.manifest.source.revision}`" in card
    assert "| Verdict | passed |" in card
    assert "| Licence | not stated by the source |" in card
    assert "negative, neutral, positive" in card
    assert 'pipelines.load("bert-text-classification")' in card


def test_an_artifact_replaces_an_older_one(exported: Make, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    put(exported("bert", "text-classification"), output)
    put(exported("bert", "text-classification"), output, architecture="bert-2")

    assert ModelArtifact.open(output).manifest.architecture == "bert-2"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_folder_that_no_export_wrote_is_left_alone(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")

    with pytest.raises(ConfigurationError, match=r"holds files but no artifact.json, so it is not ours to replace"):
        export(bert, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"


def test_a_file_that_was_put_into_an_artifact_is_not_deleted_with_it(exported: Make, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    put(exported("bert", "text-classification"), output)
    (output / "notes.txt").write_text("mine")

    with pytest.raises(ConfigurationError, match=r"holds notes.txt, which no export wrote; move it away first"):
        put(exported("bert", "text-classification"), output)
    assert (output / "notes.txt").read_text() == "mine"


def test_a_damaged_artifact_can_be_replaced(exported: Make, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    output.mkdir()
    (output / "artifact.json").write_text("{")
    (output / "model.onnx").write_bytes(b"half")

    put(exported("bert", "text-classification"), output)
    ModelArtifact.open(output)


def test_an_empty_folder_may_be_there_already_and_a_file_may_not(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is a file"):
        export(bert, tmp_path / "file")


def test_an_export_that_was_killed_leaves_nothing_and_the_next_one_cleans_up(bert: Path, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    script = (
        "import sys; from pathlib import Path; from export.build import ExportArgs, export_checkpoint\n"
        f"args = ExportArgs({str(bert)!r}, 'text-classification', Path({str(output)!r}))\n"
        "export_checkpoint(args, progress=lambda line: print(line, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("comparing"):  # the last step before the artifact is in place: everything is written
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL

    assert not output.exists()
    assert [path.name.startswith(".artifact.export-") for path in tmp_path.iterdir()] == [True]
    export(bert, output)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_the_staging_folder_of_a_running_export_is_not_cleaned_up(tmp_path: Path) -> None:
    with staging(tmp_path / "artifact") as first, staging(tmp_path / "artifact") as second:
        assert first.is_dir()
        assert second.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_finds_an_artifact_at_every_moment_of_a_replacement(exported: Make, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    put(exported("bert", "text-classification"), output)
    watch = f"import os\nprint('ready', flush=True)\nwhile True: os.stat({str(output / 'artifact.json')!r})"
    watcher = subprocess.Popen([sys.executable, "-c", watch], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watcher.stdout is not None
    watcher.stdout.readline()

    for _ in range(30):
        put(exported("bert", "text-classification"), output)

    assert watcher.poll() is None
    watcher.kill()
    watcher.communicate()


def test_a_full_disk_is_one_line_and_leaves_nothing(bert: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: it fails writes in Python and in C++ alike."""
    output = tmp_path / "artifact"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ConfigurationError) as refused:
            export(bert, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(refused.value).startswith(f"{output} cannot be written: File too large")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_without_room_is_refused_before_the_work(bert: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        with pytest.raises(
            ConfigurationError, match=r"cannot be written: No space left on device \(needs .* MB free\)"
        ):
            export(bert, disk / "artifact")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_made_is_one_line(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot be written: File exists \(.*file\)"):
        export(bert, tmp_path / "file" / "artifact")


def test_a_staging_folder_is_locked(tmp_path: Path) -> None:
    with staging(tmp_path / "artifact") as folder:
        handle = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
