"""Fixtures shared by all suites."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_checkpoints import tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(architecture, task, **changes)`: a tiny checkpoint's folder, made once per session."""
    made: dict[str, Path] = {}

    def make(architecture: str, task: str, **changes: Any) -> Path:
        key = repr((architecture, task, sorted(changes.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-{task}")
            made[key] = tiny_checkpoint(architecture, task, folder, **changes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """`exported(architecture, task, precision="fp32", **changes)`: an artifact's folder, exported once per session.

    Changes that are options of an export (`optimize="O2"`) go there; the others change the tiny checkpoint, which
    `checkpoint` returns for the same arguments.
    """
    from export.build import ExportArgs, export_checkpoint

    made: dict[str, Path] = {}
    options = {field.name for field in fields(ExportArgs)}

    def make(architecture: str, task: str, precision: str = "fp32", **changes: Any) -> Path:
        key = repr((architecture, task, precision, sorted(changes.items())))
        if key not in made:
            asked = {name: value for name, value in changes.items() if name in options}
            changed = {name: value for name, value in changes.items() if name not in options}
            source = checkpoint(architecture, task, **changed)
            output = tmp_path_factory.mktemp("artifacts") / f"{architecture}-{task}"
            args = ExportArgs(checkpoint=str(source), task=task, output=output, precision=precision, **asked)
            made[key] = export_checkpoint(args).path
        return made[key]

    return make
