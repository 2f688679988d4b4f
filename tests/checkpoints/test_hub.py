"""Checkpoints from the Hub: the real client against a small server on loopback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from checkpoints.checkpoint import ResolvedCheckpoint
from checkpoints.resolve import resolve
from export.build import ExportArgs, export_checkpoint
from pipelines.errors import CheckpointError, SextetError
from tests.hub import Hub
from tests.local_server import silent_server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the client is pointed at, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint's folder that a test may change."""
    return Path(shutil.copytree(checkpoint("bert", "text-classification"), tmp_path / "folder"))


def refusal(name: str, revision: str | None = None) -> str:
    """The line with which `name` is refused."""
    with pytest.raises(CheckpointError) as refused:
        resolve(name, revision)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_model_is_downloaded_and_pinned_to_the_commit_behind_its_branch(hub: Hub, folder: Path) -> None:
    old = hub.add("someone/bert", folder, branch="v1")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A card\n")
    new = hub.add("someone/bert", Path(shutil.copytree(folder, folder.parent / "new")))

    latest, tagged, pinned = resolve("someone/bert"), resolve("someone/bert", "v1"), resolve("someone/bert", old)

    assert (latest.revision, latest.requested, latest.licence) == (new, None, "apache-2.0")
    assert (tagged.revision, tagged.requested) == (old, "v1")
    assert (pinned.revision, pinned.requested) == (old, old)
    assert latest.config.model_type == "bert"


def test_nothing_is_downloaded_that_an_export_does_not_read(hub: Hub, folder: Path) -> None:
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "training_args.bin", "eval.png"):
        (folder / name).write_bytes(b"not wanted")
    hub.add("someone/bert", folder)

    resolve("someone/bert")

    wanted = {"config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"}
    assert {Path(file).name for file in hub.fetched} == wanted | {"tokenizer_config.json", "vocab.txt"}


def test_a_cache_that_cannot_be_written_is_named_and_not_the_output(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("someone/bert", folder)
    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file"))

    with pytest.raises(SextetError) as refused:
        export_checkpoint(ExportArgs("someone/bert", "text-classification", tmp_path / "artifact"))

    assert str(refused.value).startswith(f"someone/bert cannot be kept in {tmp_path}/file: ")
    assert "\n" not in str(refused.value)


def test_an_artifact_from_the_hub_names_its_source_and_commit(hub: Hub, folder: Path, tmp_path: Path) -> None:
    commit = hub.add("someone/bert", folder, branch="v1")

    args = ExportArgs("someone/bert", "text-classification", tmp_path / "artifact", revision="v1")
    source = export_checkpoint(args).manifest.source

    assert (source.checkpoint, source.revision, source.requested) == ("someone/bert", commit, "v1")


def test_the_cache_serves_when_the_network_does_not(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("someone/bert", folder)
    resolve("someone/bert")

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("someone/bert").revision == commit
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve("someone/bert", commit).revision == commit


def test_an_endpoint_may_end_in_a_slash(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("someone/bert", folder)
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
    assert resolve("someone/bert").revision == commit
    assert refusal("someone/brt").startswith(f"{hub.url} has no model")


def test_what_the_hub_does_not_have_is_refused(hub: Hub, folder: Path) -> None:
    hub.add("someone/bert", folder)

    assert refusal("someone/brt") == (
        f"{hub.url} has no model someone/brt, or it is private; check the id, or set HF_TOKEN"
    )
    assert refusal("someone/bert", "v9") == f"someone/bert has no revision 'v9' on {hub.url}"


def test_no_network_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    line = refusal("someone/bert")
    assert line.startswith("http://127.0.0.1:9 cannot be reached for someone/bert (")
    assert line.endswith("and it is not in the cache; check the network, or set HF_ENDPOINT")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = refusal("someone/bert", "main")
    assert line.startswith("HF_HUB_OFFLINE is set and someone/bert at revision 'main' is not in the cache")


def test_a_gated_model_needs_a_token(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("someone/bert", folder, token="hf_secret", gated=True)
    assert refusal("someone/bert") == (
        f"someone/bert is gated: accept its terms at {hub.url}/someone/bert and set HF_TOKEN to a token of that account"
    )

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert resolve("someone/bert").revision == commit


def test_a_private_model_looks_as_if_it_did_not_exist(hub: Hub, folder: Path) -> None:
    hub.add("someone/bert", folder, token="hf_secret")
    assert "or it is private; check the id, or set HF_TOKEN" in refusal("someone/bert")


def test_pickled_weights_are_refused_before_they_are_downloaded(hub: Hub, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.add("someone/bert", folder)

    assert refusal("someone/bert").startswith("someone/bert has only pickled weights (pytorch_model.bin), which can")
    assert hub.fetched == []


def test_offline_mode_is_read_from_the_environment(hub: Hub, folder: Path) -> None:
    commit = hub.add("someone/bert", folder)
    resolve("someone/bert")

    script = "from checkpoints.resolve import resolve; print(resolve('someone/bert').revision)"
    cache = huggingface_hub.constants.HF_HUB_CACHE
    environment = {**os.environ, "HF_HUB_CACHE": cache, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == commit


def test_a_resolved_checkpoint_knows_its_size(hub: Hub, folder: Path) -> None:
    hub.add("someone/bert", folder)
    found: ResolvedCheckpoint = resolve("someone/bert")
    assert found.weights_bytes == (folder / "model.safetensors").stat().st_size


def test_a_revision_may_stand_behind_the_id(hub: Hub, folder: Path) -> None:
    commit = hub.add("someone/bert", folder, branch="v1")

    found = resolve("someone/bert@v1")

    assert (found.name, found.revision, found.requested) == ("someone/bert", commit, "v1")
    assert refusal("someone/bert@v1", "v2") == (
        "someone/bert@v1 names a revision, and so does --revision v2; name it once"
    )


def test_an_artifact_is_not_taken_for_a_checkpoint(hub: Hub, folder: Path) -> None:
    (folder / "artifact.json").write_text("{}")
    hub.add("someone/bert", folder)

    assert refusal("someone/bert") == (
        "someone/bert is an artifact, not a checkpoint: name it as model: in cluster.yaml"
    )


@pytest.mark.timeout(60)
def test_a_hub_that_never_answers_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.time_limit.LIMIT_S", 0.2)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    with silent_server() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        line = refusal("someone/bert")

    assert line.startswith(f"{url} cannot be reached for someone/bert (")
    assert "Read timed out. (read timeout=0.2)" in line
