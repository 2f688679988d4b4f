"""Kept costs: a model that was measured on this machine starts with what is known, and adds what it learns."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines
from pipelines.scheduling.batching import Measurement
from pipelines.scheduling.cost_measurement import measure
from pipelines.scheduling.kept_costs import LONGEST_S, KeptCosts
from pipelines.scheduling.padded import PaddedScheduler
from pipelines.scheduling.scheduler import BatchingConfig

TASK = "text-classification"
KNOWN = [Measurement(1, 16, 0.5), Measurement(4, 16, 1.0), Measurement(4, 64, 9.0)]


def scheduler(model: Path, folder: Path | None, **batching: Any) -> PaddedScheduler[Any, Any]:
    found: PaddedScheduler[Any, Any] = pipelines.load(model).scheduler(BatchingConfig(**batching), costs=folder)
    return found


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of shapes of the measurements that were made."""
    made: list[int] = []

    def counted(forward: Any, blank_row: Any, shapes: Any, *options: Any, **named: Any) -> Any:
        made.append(len(shapes))
        return measure(forward, blank_row, shapes, *options, **named)

    monkeypatch.setattr("pipelines.tasks.pipeline.measure", counted)
    return made


def test_a_model_is_measured_once_on_a_machine(
    exported: Callable[..., Path], tmp_path: Path, measured: list[int]
) -> None:
    model = exported("bert", TASK)
    first, second = scheduler(model, tmp_path), scheduler(model, tmp_path)

    assert len(measured) == 1
    assert second.cost == first.cost
    assert len(list(tmp_path.iterdir())) == 1


def test_another_model_or_another_way_to_run_it_is_measured_by_itself(
    exported: Callable[..., Path], tmp_path: Path, measured: list[int]
) -> None:
    scheduler(exported("bert", TASK), tmp_path)
    scheduler(exported("distilbert", TASK), tmp_path)
    scheduler(exported("bert", TASK), tmp_path, concurrency=2)
    scheduler(exported("bert", TASK), tmp_path, max_batch_tokens=64)
    scheduler(exported("bert", TASK), None)

    assert len(measured) == 5
    assert len(list(tmp_path.iterdir())) == 4


def test_what_was_learned_is_what_the_next_one_starts_with(exported: Callable[..., Path], tmp_path: Path) -> None:
    model = exported("bert", TASK)
    ending = scheduler(model, tmp_path)
    assert ending._learned is not None
    ending._learned.known = KNOWN

    asyncio.run(ending.drain())
    found = scheduler(model, tmp_path)

    assert found._learned is not None
    assert found._learned.known == KNOWN


@pytest.mark.parametrize(
    "content", [b"", b"[", b"{}", b'[{"rows": 1, "longest": 16, "seconds": 0}]', b'[{"rows": "1"}]', b"[1]"]
)
def test_what_is_damaged_is_measured_again(tmp_path: Path, content: bytes) -> None:
    kept = KeptCosts(tmp_path, "model")
    kept.write(KNOWN)
    assert kept.read() == KNOWN

    kept.file.write_bytes(content)

    assert kept.read() == []


def test_what_is_old_is_measured_again(tmp_path: Path) -> None:
    kept = KeptCosts(tmp_path, "model")
    kept.write(KNOWN)
    ago = kept.file.stat().st_mtime - LONGEST_S - 60
    os.utime(kept.file, (ago, ago))

    assert kept.read() == []


def test_a_folder_that_cannot_be_written_keeps_nothing_and_hinders_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = KeptCosts(tmp_path / "file" / "costs", "model")

    kept.write(KNOWN)

    assert kept.read() == []
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
