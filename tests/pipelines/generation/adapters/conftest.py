"""Adapters on tiny checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lora import save_adapter


@pytest.fixture(scope="session")
def adapter(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`adapter(architecture, seed, **config)`: the folder of a new one."""

    def make(architecture: str, seed: int = 1, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        return save_adapter(checkpoint(architecture, "text-generation"), folder, seed, **config)

    return make
