"""What every test of a GPU gets: the marker `gpu`, the device, artifacts in the precision that suits it.

python -m pytest -m gpu                                   on CUDA; skipped, with the reason, where that is not there
SEXTET_TEST_DEVICE=cuda python -m pytest -m gpu           on CUDA; failing where that is not there
SEXTET_TEST_DEVICE=cpu python -m pytest -m gpu            the same tests on the CPU provider, as far as they go
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines
from pipelines.errors import SextetError
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.conftest import oracle as oracle

FOLDER = Path(__file__).parent
ASKED = os.environ.get("SEXTET_TEST_DEVICE")
DEVICES = ("cpu", "cuda")
PRECISIONS = {"cpu": "fp32", "cuda": "fp16"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if FOLDER in item.path.parents]
    absent = missing("cuda") if ours and not ASKED else None
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if absent is not None:
            item.add_marker(pytest.mark.skip(reason=f"{absent}; SEXTET_TEST_DEVICE=cpu runs it on the CPU"))


def missing(device: str) -> str | None:
    """Why no graph runs on `device` here; None where the smallest one does."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "smallest", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    try:
        InferenceSession(model.SerializeToString(), SessionConfig(device=device))  # type: ignore[arg-type]
    except SextetError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def device() -> str:
    """The device under test: `cuda`, or `cpu` where SEXTET_TEST_DEVICE says so."""
    if ASKED not in (None, *DEVICES):
        pytest.fail(f"SEXTET_TEST_DEVICE is {ASKED!r}; allowed: {', '.join(DEVICES)}")
    return ASKED or "cuda"


@pytest.fixture
def cuda_only(device: str) -> None:
    """For a test of what the CPU provider does not have."""
    if device != "cuda":
        pytest.skip(f"only CUDA has this, and SEXTET_TEST_DEVICE is {device}")


@pytest.fixture(scope="session")
def exported_for(device: str, exported: Callable[..., Path]) -> Callable[..., Path]:
    """`exported_for(architecture, task, precision=None, **changes)`: a tiny artifact for the device under test."""

    def make(architecture: str, task: str, precision: str | None = None, **changes: Any) -> Path:
        placed = {} if device == "cpu" else {"device": device}
        return exported(architecture, task, precision or PRECISIONS[device], **placed, **changes)

    return make


@pytest.fixture(scope="session")
def loaded_on(device: str, exported_for: Callable[..., Path]) -> Callable[..., Any]:
    """`loaded_on(architecture, task, precision=None, **changes)`: our pipeline of that artifact, on that device."""

    def make(architecture: str, task: str, precision: str | None = None, **changes: Any) -> Any:
        return pipelines.load(exported_for(architecture, task, precision, **changes), device=device)  # type: ignore[arg-type]

    return make
