"""Whose memory of a GPU a replica may take."""

import logging

import pytest

from deployments.config import TaskConfig
from deployments.gpu_memory import CONTEXT_BYTES, memory_limit
from pipelines.errors import ConfigurationError

GPU_BYTES = 24 * 2**30
CUDA = TaskConfig("m", device="cuda")


def test_a_replica_with_a_part_of_a_gpu_may_take_that_part_of_its_memory() -> None:
    assert memory_limit(CUDA, 0.25, GPU_BYTES) == GPU_BYTES // 4 - CONTEXT_BYTES
    assert memory_limit(CUDA, 0.5, GPU_BYTES) == GPU_BYTES // 2 - CONTEXT_BYTES


@pytest.mark.parametrize("reserved", [0.0, 1.0, 2.0])
def test_a_replica_with_a_whole_gpu_or_none_of_its_own_has_no_bound(reserved: float) -> None:
    assert memory_limit(CUDA, reserved, GPU_BYTES) is None


def test_what_is_configured_counts_and_a_cpu_asks_for_no_gpu() -> None:
    assert memory_limit(TaskConfig("m", device="cuda", gpu_mem_limit_bytes=2**30), 0.25, GPU_BYTES) == 2**30
    assert memory_limit(TaskConfig("m"), 0.25, GPU_BYTES) is None


def test_a_part_that_cuda_alone_fills_and_a_bound_above_the_gpu_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^num_gpus 0\.02 of a GPU with 25769803776 bytes leaves 515396075"):
        memory_limit(CUDA, 0.02, GPU_BYTES)
    with pytest.raises(ConfigurationError, match=r"^gpu_mem_limit_bytes is 25769803776, and CUDA itself takes"):
        memory_limit(TaskConfig("m", device="cuda", gpu_mem_limit_bytes=GPU_BYTES), 1.0, GPU_BYTES)


def test_a_bound_above_the_part_of_the_gpu_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert memory_limit(TaskConfig("m", device="cuda", gpu_mem_limit_bytes=8 * 2**30), 0.25, GPU_BYTES) == 8 * 2**30
    assert "exceed this replica's part of the GPU: num_gpus 0.25" in caplog.text
