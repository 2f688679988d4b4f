"""Slots copied by ONNX Runtime, as on a device whose memory nothing else reaches; here it is the CPU's."""

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.generation.slots.device.cache import DeviceCache
from pipelines.runtime.session_config import SessionConfig

SLOTS, SHAPE = 5, (2, 3, 4)
DTYPES: dict[str, np.dtype[Any]] = {
    # More buffers than a byte counts, in both precisions that caches have.
    f"past_key_values.{layer}.{part}": np.dtype(dtype)
    for layer in range(70)
    for part, dtype in (("key", np.float32), ("value", np.float16))
}


@pytest.fixture(scope="module")
def cache() -> DeviceCache:
    return DeviceCache(DTYPES, dict.fromkeys(DTYPES, (SLOTS, *SHAPE)), SessionConfig())


@pytest.fixture(scope="module")
def arrays(cache: DeviceCache) -> dict[str, np.ndarray]:
    """The buffers of the cache, which the CPU reaches here."""

    def view(name: str) -> np.ndarray:
        _, _, dtype, shape, address = cache.place(name, 0, SLOTS)
        memory = (ctypes.c_uint8 * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    return {name: view(name) for name in DTYPES}


@given(
    targets=st.lists(st.integers(0, SLOTS - 1), unique=True),
    sources=st.lists(st.integers(0, SLOTS - 1), min_size=SLOTS, max_size=SLOTS),
)
@settings(max_examples=30)
def test_every_target_holds_what_its_source_held_before(
    arrays: dict[str, np.ndarray], cache: DeviceCache, targets: list[int], sources: list[int]
) -> None:
    for number, array in enumerate(arrays.values()):
        array[:] = number + np.arange(SLOTS)[:, None, None, None] / 8
    expected = {name: array.copy() for name, array in arrays.items()}
    for array in expected.values():
        array[targets] = array[sources[: len(targets)]]
    cache.copy(sources[: len(targets)], targets, tokens=3)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_slots_begin_as_zeros_in_memory_that_held_what_is_no_number() -> None:
    """Zero times NaN is NaN: values behind the end of a row would reach its answer."""
    dirty = DeviceCache(DTYPES, dict.fromkeys(DTYPES, (SLOTS, *SHAPE)), SessionConfig())
    for slot in range(SLOTS):
        dirty.restore(slot, nothing_but(np.nan))
    del dirty  # its memory is the next one's
    fresh = DeviceCache(DTYPES, dict.fromkeys(DTYPES, (SLOTS, *SHAPE)), SessionConfig())
    for slot in range(SLOTS):
        assert not any(values.any() for values in fresh.save(slot, SHAPE[1]).values())


def nothing_but(value: float) -> dict[str, np.ndarray]:
    return {name: np.full(SHAPE, value, dtype) for name, dtype in DTYPES.items()}


def test_the_tokens_of_a_slot_are_saved_in_host_memory_and_come_back_in_any_slot(
    arrays: dict[str, np.ndarray], cache: DeviceCache
) -> None:
    for number, array in enumerate(arrays.values()):
        array[:] = number + np.arange(SLOTS)[:, None, None, None] / 8 + np.arange(3)[:, None] / 64
    expected = {name: array[3, :, :2].copy() for name, array in arrays.items()}
    saved = cache.save(3, tokens=2)
    for name, kept in saved.items():
        assert kept.dtype == DTYPES[name]
        np.testing.assert_array_equal(kept, expected[name])
    for array in arrays.values():
        array[:] = 0
    cache.restore(1, saved)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[1, :, :2], expected[name])
        assert not array[[0, 2, 3, 4]].any()
