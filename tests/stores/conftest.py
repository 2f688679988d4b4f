"""Fixtures of the stores: a Hub and caches of their own."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import reset_sessions  # type: ignore[attr-defined]  # public, but not re-exported

from tests.hub import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the client is pointed at, with an empty cache."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    reset_sessions()  # the client's connections remember whether it was offline when they were made
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub
    reset_sessions()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this node keeps what it fetched from URLs, empty at first."""
    monkeypatch.setenv("SEXTET_CACHE", str(tmp_path / "sextet"))
    return tmp_path / "sextet" / "artifacts"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the Hub waits half a minute in all before it has tried everything again; here it does not."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _s: None)
