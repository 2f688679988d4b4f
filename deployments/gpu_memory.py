"""The GPU memory of a replica: what cluster.yaml says, or its part of the GPU."""

from deployments.config import TaskConfig
from deployments.http.errors import logger
from pipelines.errors import ConfigurationError
from pipelines.runtime.nvidia.memory import gpu_memory_bytes

CONTEXT_BYTES = 768 * 2**20
"""What CUDA's context and the workspaces of its libraries take in each process, beside ONNX Runtime's arenas."""


def memory_limit(config: TaskConfig, reserved_gpus: float, total_bytes: int | None = None) -> int | None:
    """The bound of what a replica's model may take, its KV cache included, in bytes; None for no bound.

    A replica that reserves a part of a GPU (`num_gpus` below 1) may take that part of its memory, the context included.
    `total_bytes` is the GPU's memory; None asks the driver. Raises ConfigurationError for a bound that cannot hold.
    """
    given = config.gpu_mem_limit_bytes
    if config.device == "cpu":
        return given
    total_bytes = gpu_memory_bytes() if total_bytes is None else total_bytes
    if total_bytes is None:
        return given
    share = int(reserved_gpus * total_bytes) if 0 < reserved_gpus < 1 else total_bytes
    if given is None:
        limit = share - CONTEXT_BYTES
        if share == total_bytes:
            return None
        if limit <= 0:
            raise ConfigurationError(
                f"num_gpus {reserved_gpus:g} of a GPU with {total_bytes} bytes leaves {share}, and CUDA itself takes "
                f"{CONTEXT_BYTES}; reserve more of the GPU"
            )
        return limit
    if given + CONTEXT_BYTES > total_bytes:
        raise ConfigurationError(
            f"gpu_mem_limit_bytes is {given}, and CUDA itself takes {CONTEXT_BYTES}; the GPU has {total_bytes}"
        )
    if given + CONTEXT_BYTES > share:
        logger.warning(
            "gpu_mem_limit_bytes %d and the %d of CUDA itself exceed this replica's part of the GPU: num_gpus %g of %d",
            given,
            CONTEXT_BYTES,
            reserved_gpus,
            total_bytes,
        )
    return given
