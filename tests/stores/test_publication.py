"""Publishing with the real huggingface_hub client: what arrives is what is fetched, and what must not go out stays."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

import pipelines
import sextet
from pipelines.errors import SextetError
from pipelines.runtime.artifact import Parity, Source
from stores.fetch import fetch
from stores.publication import publish
from tests.artifacts import MANIFEST, write_artifact
from tests.hub import Hub
from tests.local_server import silent_server


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "sentiment")


@pytest.fixture
def writable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub, as someone who may write below `someone/`."""
    hub.uploads.accounts["hf_writer"] = "someone"
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return hub


def refusal(folder: Path, to: str = "someone/sentiment") -> str:
    """The line with which publishing is refused."""
    with pytest.raises(SextetError) as refused:
        publish(folder, to)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def published(hub: Hub, repository: str = "someone/sentiment", branch: str = "main") -> set[str]:
    return {file.name for file in hub.repositories[repository][branch].folder.iterdir()}


def test_an_artifact_and_its_card_are_pushed_and_the_printed_address_fetches_them(
    writable: Hub, artifact: Path
) -> None:
    (artifact / "notes.txt").write_text("mine")

    run = CliRunner().invoke(sextet.app, ["publish", str(artifact), "--to", "someone/sentiment", "--private"])

    assert run.exit_code == 0, run.output
    address = f"someone/sentiment@{writable.repositories['someone/sentiment']['main'].commit}"
    assert run.stdout == f"model: {address}\n"
    assert f"uploading 4 files (0.0 MB) to {writable.url}/someone/sentiment" in run.stderr
    assert published(writable) == {".gitattributes", "README.md", "artifact.json", "model.onnx", "tokenizer.json"}
    assert len(writable.uploads.received) == 1  # the graph, through large file storage
    assert writable.uploads.private == {"someone/sentiment"}
    folder = fetch(address).folder
    assert (folder / "model.onnx").read_bytes() == (artifact / "model.onnx").read_bytes()


def test_what_was_exported_published_and_fetched_answers_as_before(
    writable: Hub, exported: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("bert", "text-classification"), tmp_path / "copy"))
    manifest = json.loads((folder / "artifact.json").read_text())
    manifest["source"]["licence"] = "apache-2.0"
    (folder / "artifact.json").write_text(json.dumps(manifest))

    fetched = fetch(publish(folder, "someone/bert")).folder

    assert pipelines.load(fetched)("정말 좋았어요") == pipelines.load(folder)("정말 좋았어요")


def test_a_new_version_replaces_the_files_of_the_old_one_and_uploads_what_changed(
    writable: Hub, artifact: Path, tmp_path: Path
) -> None:
    (artifact / "extra.json").write_text("{}")
    first = publish(write_artifact(artifact), "someone/sentiment")
    assert "extra.json" in published(writable)

    second = publish(write_artifact(tmp_path / "second", architecture="bert-2"), "someone/sentiment")

    assert first != second
    assert "extra.json" not in published(writable)
    assert len(writable.uploads.received) == 1  # the same graph is there already
    assert '"bert-2"' in (fetch(second).folder / "artifact.json").read_text()


def test_what_is_to_be_private_is_not_pushed_where_everybody_sees_it(writable: Hub, artifact: Path) -> None:
    for repository in ("someone/open", "someone/closed"):
        publish(artifact, repository, private=repository == "someone/closed")
    write_artifact(artifact, graph=b"another")
    with pytest.raises(SextetError, match=r"someone/open@main is there already, for everybody to see.*leave --private"):
        publish(artifact, "someone/open", private=True)

    assert len(writable.uploads.received) == 1
    assert publish(artifact, "someone/closed", private=True) != publish(artifact, "someone/open")


def test_a_branch_is_made_where_it_is_named(writable: Hub, artifact: Path) -> None:
    address = publish(artifact, "someone/sentiment@int8")

    assert published(writable) == {".gitattributes"}
    assert "model.onnx" in published(writable, branch="int8")
    assert fetch("someone/sentiment@int8").pinned == address


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parity": Parity(False, 64, 3.0, 0.5, "98% of labels")}, "failed its parity check with PyTorch"),
        (
            {"source": Source("runs/mine", "sha256:1")},
            "states no licence, so nobody could use it; put `license:` into the card (README.md) of runs/mine",
        ),
    ],
)
def test_what_must_not_be_published_stays(writable: Hub, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(write_artifact(tmp_path / "a", **changes))
    assert writable.repositories == {}


def test_an_altered_or_a_missing_artifact_is_not_published(writable: Hub, artifact: Path, tmp_path: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"poisoned")

    assert "model.onnx was altered since its export" in refusal(artifact)
    assert "is not a model artifact (no artifact.json)" in refusal(tmp_path / "absent")


def test_a_repository_of_something_else_is_left_alone(writable: Hub, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"trained for weeks")
    writable.add("someone/sentiment", tmp_path / "checkpoint")

    assert refusal(artifact) == (
        "someone/sentiment@main holds model.safetensors and no artifact.json, so it is not ours to replace"
    )


def test_without_the_right_to_write_it_is_said_so(
    writable: Hub, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = "set HF_TOKEN to a token that may write there"
    assert refusal(artifact, "other/sentiment") == f"{writable.url} refuses to write other/sentiment (403); {advice}"
    monkeypatch.delenv("HF_TOKEN")
    assert refusal(artifact) == f"{writable.url} refuses to write someone/sentiment (401); {advice}"


def test_no_network_and_offline_mode_are_said_so(hub: Hub, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert refusal(artifact).startswith("http://127.0.0.1:9 cannot be reached for someone/sentiment (")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refusal(artifact) == "HF_HUB_OFFLINE is set: nothing is published"


def test_a_repository_that_ignores_files_gets_no_artifact_without_them(
    writable: Hub, artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "ignoring").mkdir()
    (tmp_path / "ignoring" / ".gitignore").write_text("*.onnx")
    writable.add("someone/sentiment", tmp_path / "ignoring")

    assert refusal(artifact) == (
        "someone/sentiment@main has a .gitignore, and the Hub leaves out in silence what that names; "
        "remove it there first"
    )


def test_a_large_file_that_the_hub_refuses_is_one_line(writable: Hub, artifact: Path) -> None:
    writable.uploads.quota = "Private repository storage limit reached"

    line = refusal(artifact)

    assert line.startswith(f"{writable.url} did not take someone/sentiment@main (LFS batch API returned errors: ")
    assert "Private repository storage limit reached" in line


@pytest.mark.usefixtures("impatient")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("silent", "unread"),
    [
        ("/api/repos/create", False),
        ("/api/models/.*/revision/main", False),
        ("/api/models/.*/preupload/main", False),
        (".*/info/lfs/objects/batch", False),
        (r"/lfs/\w+", False),
        (r"/lfs/\w+", True),
        (r"/lfs/\w+/verify", False),
        ("/api/models/.*/commit/main", False),
    ],
)
def test_a_hub_that_takes_a_request_and_never_answers_is_given_up(
    writable: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: str, unread: bool
) -> None:
    monkeypatch.setattr("stores.time_limit.LIMIT_S", 0.2)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    writable.uploads.silent, writable.uploads.unread = silent, unread
    artifact = write_artifact(tmp_path / "large", bytes(16 * 2**20))  # more than the buffers between the two hold

    line = refusal(artifact)

    assert line == (
        f"{writable.url} did not answer within 0.2 s, and someone/sentiment@main may not be published; "
        "look there, or publish it again"
    )
    assert not writable.repositories or published(writable) == {".gitattributes"}


@pytest.mark.timeout(60)
def test_a_storage_behind_the_hub_that_never_answers_is_given_up_by_the_limits_of_hf_xet(
    writable: Hub, artifact: Path
) -> None:
    """It reads them once in a process, so that this one is of its own."""
    limits = {"HF_XET_CLIENT_READ_TIMEOUT": "300ms", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "0"}
    command = [sys.executable, "-m", "sextet", "publish", str(artifact), "--to", "someone/sentiment"]
    with silent_server() as writable.uploads.xet:
        run = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True)

    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(
        f"sextet: {writable.url} cannot be reached for someone/sentiment (Network error: "
    )
    assert published(writable) == {".gitattributes"}


@pytest.mark.parametrize("to", ["", "sentiment", "a/b/c", "./a/b@c", "s3://bucket/a@sha256:" + "0" * 64, "so--me/x"])
def test_a_target_that_is_no_address_is_refused(artifact: Path, hub: Hub, to: str) -> None:
    assert refusal(artifact, to).startswith("--to is ")


def test_an_artifact_is_published_behind_a_url_and_replaces_only_artifacts(
    artifact: Path, cache: Path, tmp_path: Path
) -> None:
    url = (tmp_path / "share" / "models" / "sentiment").as_uri()
    (artifact / "extra.json").write_text("{}")
    first = publish(write_artifact(artifact), url)
    second = publish(write_artifact(tmp_path / "second", architecture="bert-2"), url)

    assert first.startswith(f"{url}@sha256:")
    assert fetch(url).pinned == fetch(second).pinned == second
    assert {file.name for file in (tmp_path / "share/models/sentiment").iterdir()} == {
        "artifact.json",
        *MANIFEST.graphs.values(),
        "tokenizer.json",
        "README.md",
    }
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("the only copy")
    assert "holds thesis.txt and no artifact.json, so it is not ours to replace" in refusal(
        artifact, (tmp_path / "thesis").as_uri()
    )
