"""Slots copied by ONNX Runtime, as on a device whose memory nothing else reaches; here it is the CPU's."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.generation.slots.buffer_copy import BufferCopy
from pipelines.runtime.session import SessionConfig

SLOTS = 5


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Of more buffers than a byte counts, in both precisions that caches have."""
    return {
        f"past_key_values.{layer}.{part}": np.empty((SLOTS, 2, 3, 4), dtype)
        for layer in range(70)
        for part, dtype in (("key", np.float32), ("value", np.float16))
    }


@pytest.fixture(scope="module")
def copy(arrays: dict[str, np.ndarray]) -> BufferCopy:
    buffers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    return BufferCopy(buffers, SessionConfig())


@given(
    targets=st.lists(st.integers(0, SLOTS - 1), unique=True),
    sources=st.lists(st.integers(0, SLOTS - 1), min_size=SLOTS, max_size=SLOTS),
)
@settings(max_examples=30)
def test_every_target_holds_what_its_source_held_before(
    arrays: dict[str, np.ndarray], copy: BufferCopy, targets: list[int], sources: list[int]
) -> None:
    for number, array in enumerate(arrays.values()):
        array[:] = number + np.arange(SLOTS)[:, None, None, None] / 8
    expected = {name: array.copy() for name, array in arrays.items()}
    for array in expected.values():
        array[targets] = array[sources[: len(targets)]]
    copy(sources[: len(targets)], targets)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_what_was_saved_of_a_slot_comes_back_in_any_slot(arrays: dict[str, np.ndarray], copy: BufferCopy) -> None:
    for number, array in enumerate(arrays.values()):
        array[:] = number + np.arange(SLOTS)[:, None, None, None] / 8
    expected = {name: array[3].copy() for name, array in arrays.items()}
    saved = copy.save(3)
    for array in arrays.values():
        array[:] = 0
    copy.restore(1, saved)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[1], expected[name])
        assert not array[[0, 2, 3, 4]].any()
