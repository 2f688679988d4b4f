"""The oracle of every pipeline, transformers', and how hard hypothesis looks for a difference."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import pipelines

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


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
