"""Artifacts from the Hub and from URLs: fetched once, whole, and refused in one line where they are not."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub.constants
import pytest

from pipelines.errors import ArtifactError, SextetError
from pipelines.runtime.artifact import ModelArtifact
from stores.fetch import fetch
from tests.artifacts import write_artifact
from tests.google_storage import GoogleStorage
from tests.hub import Hub
from tests.local_server import silent_server
from tests.s3 import S3

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "bucket" / "sentiment")


def refusal(name: str) -> str:
    """The line with which `name` is refused."""
    with pytest.raises(SextetError) as refused:
        fetch(name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def digest(artifact: Path) -> str:
    return hashlib.sha256((artifact / "artifact.json").read_bytes()).hexdigest()


def same_files(one: Path, other: Path) -> bool:
    return {file.name: file.read_bytes() for file in one.iterdir()} == {
        file.name: file.read_bytes() for file in other.iterdir()
    }


def test_a_folder_is_used_where_it_is(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(artifact.parent)

    assert fetch("sentiment").folder == artifact
    assert fetch("absent").folder == artifact.parent / "absent"  # ModelArtifact.open says what is wrong with it


# The Hub


def test_an_artifact_of_the_hub_is_fetched_once_and_pinned_to_its_commit(hub: Hub, artifact: Path) -> None:
    commit = hub.add("someone/sentiment", artifact, branch="v1")
    said: list[str] = []

    first = fetch("someone/sentiment@v1", said.append)
    fetched = sorted(hub.fetched)

    assert first.pinned == f"someone/sentiment@{commit}"
    assert same_files(first.folder, artifact)
    assert ModelArtifact.open(first.folder).manifest.task == "text-classification"
    assert said == [f"fetching someone/sentiment@v1 ({commit[:8]}, 0.0 MB in 3 files)"]
    assert fetched == [f"someone/sentiment/{name}" for name in sorted(os.listdir(artifact))]
    assert fetch("someone/sentiment@v1") == fetch(first.pinned) == first
    assert sorted(hub.fetched) == fetched


def test_a_branch_that_moved_is_fetched_again_and_a_commit_stays(hub: Hub, artifact: Path, tmp_path: Path) -> None:
    old = hub.add("someone/sentiment", artifact)
    before = fetch("someone/sentiment@main")
    new = hub.add("someone/sentiment", write_artifact(tmp_path / "new", b"better"))
    hub.add("someone/sentiment", artifact, branch="old", commit=old)

    assert fetch("someone/sentiment@main").pinned == f"someone/sentiment@{new}"
    assert fetch(f"someone/sentiment@{old}") == before


def test_replicas_that_start_together_download_an_artifact_once(hub: Hub, artifact: Path, tmp_path: Path) -> None:
    commit = hub.add("someone/sentiment", artifact)
    script = f"from stores.fetch import fetch; print(fetch('someone/sentiment@{commit}').folder)"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    replicas = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = {replica.communicate(timeout=60)[0] for replica in replicas}

    assert len(folders) == 1
    assert sorted(hub.fetched) == [f"someone/sentiment/{name}" for name in sorted(os.listdir(artifact))]


@pytest.mark.usefixtures("impatient")
def test_the_cache_serves_when_the_hub_does_not(hub: Hub, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("someone/sentiment", artifact)
    fetched = fetch("someone/sentiment@main")

    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)
    assert fetch("someone/sentiment@main") == fetch(f"someone/sentiment@{commit}") == fetched
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch("someone/sentiment@main") == fetched


def test_a_cache_that_was_damaged_heals(hub: Hub, artifact: Path) -> None:
    hub.add("someone/sentiment", artifact)
    folder = fetch("someone/sentiment@main").folder
    (folder / "model.onnx").resolve().write_bytes(b"damaged")

    assert same_files(fetch("someone/sentiment@main").folder, artifact)


def test_what_the_hub_does_not_have_is_refused(hub: Hub, artifact: Path, tmp_path: Path) -> None:
    hub.add("someone/sentiment", artifact)
    hub.add("someone/checkpoint", Path(shutil.copytree(artifact, tmp_path / "plain")))
    (tmp_path / "plain" / "artifact.json").unlink()

    assert refusal("someone/sentment@main") == (
        f"{hub.url} has no model someone/sentment, or it is private; check the id, or set HF_TOKEN"
    )
    assert refusal("someone/sentiment@v9") == f"someone/sentiment has no revision 'v9' on {hub.url}"
    assert refusal("someone/checkpoint@main") == (
        "someone/checkpoint is not a model artifact (no artifact.json, or it lacks a file); `sextet export` makes one"
    )
    assert refusal("some--one/x@main") == "some--one/x@main names no repository; allowed: owner/name@revision"


def test_a_private_artifact_needs_a_token_and_gets_it_from_the_environment(
    hub: Hub, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("someone/sentiment", artifact, token="hf_reader")
    hub.add("someone/gated", artifact, token="hf_reader", gated=True)
    assert "or it is private; check the id, or set HF_TOKEN" in refusal("someone/sentiment@main")
    assert refusal("someone/gated@main").startswith("someone/gated is gated: accept its terms at")

    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert same_files(fetch("someone/sentiment@main").folder, artifact)


@pytest.mark.usefixtures("impatient")
def test_no_network_and_offline_mode_are_said_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)
    line = refusal("someone/sentiment@main")
    assert line.startswith(f"{UNREACHABLE} cannot be reached for someone/sentiment at revision 'main' (")
    assert line.endswith("and it is not in the cache; check the network, or set HF_ENDPOINT")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = refusal("someone/sentiment@main")
    assert line.startswith("HF_HUB_OFFLINE is set and someone/sentiment at revision 'main' is not in the cache")


@pytest.mark.usefixtures("impatient")
@pytest.mark.timeout(60)
def test_a_hub_that_never_answers_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with silent_server() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert refusal("someone/sentiment@main").startswith(f"{url} cannot be reached for someone/sentiment at")


def test_a_file_that_is_longer_on_the_hub_than_its_manifest_says_is_not_downloaded(hub: Hub, artifact: Path) -> None:
    with (artifact / "model.onnx").open("ab") as file:
        file.write(b"more")
    hub.add("someone/sentiment", artifact)

    assert refusal("someone/sentiment@main") == (
        "model.onnx of someone/sentiment@main is longer than the 5000 bytes that its manifest says: "
        "it was altered after the export; publish it again"
    )
    assert hub.fetched == ["someone/sentiment/artifact.json"]


def test_a_file_that_was_altered_on_the_hub_is_refused(hub: Hub, artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"poison" + b"graph" * 998)
    hub.add("someone/sentiment", artifact)

    assert refusal("someone/sentiment@main") == (
        "model.onnx of someone/sentiment@main is not what its manifest describes (sha256 differs): "
        "it was altered after the export; publish it again"
    )


# URLs


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, artifact: Path) -> str:
    """The artifact behind a URL, on a disk that is shared or in memory."""
    if request.param == "file":
        return artifact.as_uri()
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for file in artifact.iterdir():
        memory.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    return "memory://bucket"


def test_an_artifact_behind_a_url_is_copied_once_and_pinned_to_its_manifest(
    url: str, artifact: Path, cache: Path
) -> None:
    said: list[str] = []

    first = fetch(url, said.append)

    assert first.pinned == f"{url}@sha256:{digest(artifact)}"
    assert first.folder == cache / digest(artifact)
    assert same_files(first.folder, artifact)
    assert said == [f"fetching {url} (0.0 MB in 3 files)"]
    assert fetch(url, said.append) == first
    assert len(said) == 1


def test_a_pinned_artifact_in_the_cache_needs_no_network(artifact: Path, cache: Path) -> None:
    fetched = fetch(artifact.as_uri())
    shutil.rmtree(artifact)

    assert fetch(fetched.pinned) == fetched
    assert refusal(artifact.as_uri()).startswith(f"{artifact.as_uri()} is not a model artifact: there is no ")


def test_another_artifact_behind_a_pinned_url_is_refused(artifact: Path, cache: Path) -> None:
    pinned = f"{artifact.as_uri()}@sha256:{digest(artifact)}"
    write_artifact(artifact, b"another")

    assert (
        refusal(pinned) == f"{pinned}: its artifact.json has the sha256 {digest(artifact)}: it was altered, or replaced"
    )


def test_a_file_that_was_altered_behind_a_url_is_refused_and_not_kept(artifact: Path, cache: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"poisoned")

    assert refusal(artifact.as_uri()).startswith(
        f"model.onnx of {artifact.as_uri()} is not what its manifest describes"
    )
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_a_file_that_is_longer_behind_a_url_than_its_manifest_says_is_given_up_at_that_length(
    url: str, artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for the file that was promised, and for no byte of another."""
    graph = artifact / "model.onnx"
    graph.write_bytes(graph.read_bytes() * 5000)
    if url.startswith("memory"):
        fsspec.filesystem("memory").pipe_file("/bucket/model.onnx", graph.read_bytes())
    written: list[int] = []
    monkeypatch.setattr("stores.filesystem.shutil.rmtree", lambda folder, **_: written.append(size(folder)))

    assert refusal(url) == (
        f"model.onnx of {url} is longer than the 5000 bytes that its manifest says: "
        "it was altered after the export; publish it again"
    )
    assert written[0] <= 5000 + sum(file.stat().st_size for file in artifact.iterdir() if file != graph)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_a_manifest_without_an_end_is_given_up(artifact: Path, cache: Path) -> None:
    with (artifact / "artifact.json").open("r+b") as file:
        file.truncate(2**40)  # of zeros, and sparse

    assert refusal(artifact.as_uri()) == (
        f"artifact.json of {artifact.as_uri()} is longer than the 16777216 bytes of a manifest; publish it again"
    )


def test_a_copy_that_was_damaged_heals(artifact: Path, cache: Path) -> None:
    fetched = fetch(artifact.as_uri())
    (fetched.folder / "model.onnx").write_bytes(b"damaged")

    assert fetch(fetched.pinned) == fetched
    assert same_files(fetched.folder, artifact)


def test_a_whole_copy_is_served_from_a_cache_that_nobody_may_write(artifact: Path, cache: Path) -> None:
    kept = fetch(artifact.as_uri()).folder
    for lock in cache.glob(".*.lock"):  # root writes everywhere, but no file where a folder is
        lock.unlink()
        lock.mkdir()

    assert fetch(artifact.as_uri()).folder == kept


def test_a_download_that_was_killed_goes_on_where_it_ended(artifact: Path, cache: Path) -> None:
    partial = cache / f".{digest(artifact)}.partial"
    partial.mkdir(parents=True)
    shutil.copy(artifact / "model.onnx", partial)
    (partial / "tokenizer.json").write_text("ha")
    said: list[str] = []

    assert same_files(fetch(artifact.as_uri(), said.append).folder, artifact)
    assert said == [f"fetching {artifact.as_uri()} (0.0 MB in 2 files)"]
    assert not partial.exists()


def test_who_waits_for_the_download_of_another_process_says_so(artifact: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    other = (cache / f".{digest(artifact)}.lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        fcntl.flock(other, fcntl.LOCK_UN)

    assert same_files(fetch(artifact.as_uri(), say).folder, artifact)
    assert said[0] == f"waiting for another process to fetch {artifact.as_uri()}"
    other.close()


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/b", "artifact.json"])
def test_a_manifest_that_names_files_elsewhere_is_refused(artifact: Path, cache: Path, name: str) -> None:
    manifest = json.loads((artifact / "artifact.json").read_text())
    manifest["files"][name] = manifest["files"]["model.onnx"]
    (artifact / "artifact.json").write_text(json.dumps(manifest))

    assert f"it names the file {name!r}, which is none of its own" in refusal(artifact.as_uri())


def test_a_graph_whose_digest_nobody_knows_is_refused(artifact: Path, cache: Path) -> None:
    manifest = json.loads((artifact / "artifact.json").read_text())
    manifest["graphs"]["model"] = "../model.onnx"
    (artifact / "artifact.json").write_text(json.dumps(manifest))

    assert "it names the file '../model.onnx', which is none of its own" in refusal(artifact.as_uri())


def test_a_disk_without_room_is_refused_before_the_download(artifact: Path, cache: Path) -> None:
    manifest = json.loads((artifact / "artifact.json").read_text())
    manifest["files"]["model.onnx"]["size"] = 10**18
    (artifact / "artifact.json").write_text(json.dumps(manifest))

    line = refusal(artifact.as_uri())

    assert line.startswith(
        f"{artifact.as_uri()} cannot be kept in {cache}: No space left on device (needs 1000000000000."
    )
    assert "name another folder with SEXTET_CACHE" in line
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_one_line(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "file"))

    assert " cannot be kept in " in refusal(artifact.as_uri())


def test_a_url_that_nothing_reads_is_refused() -> None:
    assert refusal("gopher://host/a").startswith("gopher://host/a: Protocol not known: gopher")
    assert refusal("abfs://c@host/a").startswith("abfs://c@host/a needs a package that is not installed: ")


# Google Cloud Storage, with the real gcsfs against a bucket on loopback


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> None:
    gcsfs = pytest.importorskip("gcsfs")
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.mark.usefixtures("google")
def test_an_artifact_of_google_cloud_storage_is_fetched_once_and_one_that_is_not_there_is_one_line(
    artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GoogleStorage(artifact.parents[1]) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        first = fetch("gs://bucket/sentiment")
        assert same_files(first.folder, artifact)
        assert sorted(storage.fetched) == [f"bucket/sentiment/{name}" for name in sorted(os.listdir(artifact))]
        assert fetch(first.pinned) == fetch("gs://bucket/sentiment") == first
        assert refusal("gs://bucket/absent").startswith("gs://bucket/absent is not a model artifact: there is no ")


# S3, with the real s3fs against a bucket on loopback


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name, value in {
        "ACCESS_KEY_ID": "reader",
        "SECRET_ACCESS_KEY": "secret",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("aws")
def test_an_artifact_in_a_bucket_is_fetched_once(artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3(artifact.parents[1], key="reader") as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        first = fetch("s3://bucket/sentiment")
        fetched = sorted(s3.fetched)
        assert fetch(first.pinned) == fetch("s3://bucket/sentiment") == first

    assert same_files(first.folder, artifact)
    assert fetched == [f"bucket/sentiment/{name}" for name in sorted(os.listdir(artifact))]
    assert sorted(s3.fetched) == sorted([*fetched, "bucket/sentiment/artifact.json"])


@pytest.mark.usefixtures("aws")
def test_a_file_that_is_longer_in_a_bucket_than_its_manifest_says_is_not_downloaded_whole(
    artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (artifact / "model.onnx").open("ab") as file:
        file.truncate(64 * 2**20)
    with S3(artifact.parents[1], key="reader") as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        assert "model.onnx of s3://bucket/sentiment is longer than the 5000 bytes" in refusal("s3://bucket/sentiment")

    assert s3.sent < 2 * 2**20


@pytest.mark.usefixtures("aws")
@pytest.mark.timeout(60)
def test_a_bucket_that_never_answers_is_given_up(artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.2)
    with silent_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert refusal("s3://bucket/sentiment").startswith("s3://bucket/sentiment cannot be reached (")


@pytest.mark.usefixtures("aws")
def test_a_bucket_without_access_without_the_artifact_or_without_a_network_is_one_line(
    artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with S3(artifact.parents[1], key="reader") as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        assert refusal("s3://bucket/absent").startswith("s3://bucket/absent is not a model artifact: there is no ")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        assert refusal("s3://bucket/sentiment").startswith("no access to s3://bucket/sentiment (")
    monkeypatch.setenv("AWS_ENDPOINT_URL", UNREACHABLE)
    s3fs.S3FileSystem.clear_instance_cache()
    assert refusal("s3://bucket/sentiment").startswith("s3://bucket/sentiment cannot be reached (")


def test_a_start_reads_each_file_of_a_fetched_artifact_once(
    hub: Hub, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"someone/sentiment@{hub.add('someone/sentiment', artifact)}"
    fetch(address)
    time.sleep(0.1)  # a file that was written a moment ago may change without a trace
    read: list[str] = []
    file_digest = hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    opened = ModelArtifact.open(fetch(address).folder)
    assert sorted(read) == sorted(opened.manifest.files)

    file = opened.path / next(iter(opened.manifest.files))
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(ArtifactError, match="was altered"):
        ModelArtifact.open(opened.path)
