"""Fixtures of the batch: storage of the network, with clients that are made anew for each test."""

from pathlib import Path

import pytest


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own credentials or settings, and few tries."""
    s3fs = pytest.importorskip("s3fs")
    for name, value in {
        "ACCESS_KEY_ID": "someone",
        "SECRET_ACCESS_KEY": "secret",
        "DEFAULT_REGION": "us-east-1",
        "EC2_METADATA_DISABLED": "true",
        "CONFIG_FILE": str(tmp_path / "no-config"),
        "SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without credentials."""
    gcsfs = pytest.importorskip("gcsfs")
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    gcsfs.GCSFileSystem.clear_instance_cache()
