"""Lazy zeros: what is not written takes no memory."""

import resource
from pathlib import Path

import numpy as np

from pipelines.generation.slots.host_cache import lazy_zeros

MIB = 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_writing_a_little_everywhere_takes_little_memory() -> None:
    before = resident_bytes()
    array = lazy_zeros((64, 1024, 256), np.dtype(np.float32))  # 64 MiB: a slot and head of 1 MiB each
    array[:, 0] = 1.0
    assert resident_bytes() - before < 8 * MIB


def test_they_are_zeros_that_can_be_written_and_keep_their_memory() -> None:
    array = lazy_zeros((3, 5), np.dtype(np.float16))[1:]
    assert array.shape == (2, 5)
    assert array.dtype == np.float16
    assert not array.any()
    array[0, 4] = 2.0
    assert array.sum() == 2.0
