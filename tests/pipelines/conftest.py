"""The oracle of every pipeline, transformers'."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines


@pytest.fixture(scope="session")
def oracle(checkpoint: Callable[..., Path]) -> Callable[..., Any]:
    """`oracle(architecture, task, **changes)`: transformers' pipeline on the checkpoint that `loaded` was made from."""
    made: dict[str, Any] = {}

    def make(architecture: str, task: str, **changes: Any) -> Any:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(1)
        key = repr((architecture, task, sorted(changes.items())))
        if key not in made:
            path = str(checkpoint(architecture, task, **changes))
            made[key] = transformers.pipeline(task, path, device="cpu")
        return made[key]

    return make


@pytest.fixture(scope="session")
def loaded(exported: Callable[..., Path]) -> Callable[..., Any]:
    """`loaded(architecture, task, **changes)`: our pipeline on the exported tiny checkpoint."""
    made: dict[str, Any] = {}

    def make(architecture: str, task: str, **changes: Any) -> Any:
        key = repr((architecture, task, sorted(changes.items())))
        if key not in made:
            made[key] = pipelines.load(exported(architecture, task, **changes))
        return made[key]

    return make
