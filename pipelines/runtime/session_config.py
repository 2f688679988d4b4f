"""SessionConfig: where a graph runs, what of a GPU's memory it may take, and what that means to each provider."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.errors import ConfigurationError, GenerationError
from pipelines.runtime.providers import Device

_ENGINES = Path("~/.cache/sextet/tensorrt")  # building an engine takes minutes, for one GPU model: kept between starts
ERROR = 3  # onnxruntime's severities: 2 is warning, 3 is error
# What the arena says when its bound is reached, what it says when the device has no more, and what CUDA says.
_NO_MEMORY = re.compile(
    r"Available memory of \d+ is smaller than requested bytes of \d+"
    r"|Failed to allocate memory for requested buffer of size \d+|out of memory"
)
_TWICE = ", twice as CUDA graphs need them; cuda_graphs: false halves that"
_FLASH, _MEMORY_EFFICIENT = 1, 2  # bits of the CUDA provider's `sdpa_kernel`


@dataclass(frozen=True)
class Engine:
    """What a TensorRT engine is built for: every shape up to (`rows`, `tokens`), fastest at `usual`; `fp16`: in half
    precision. A shape outside builds another engine, which takes minutes.
    """

    rows: int
    tokens: int
    usual: tuple[int, int]
    fp16: bool


@dataclass(frozen=True)
class SessionConfig:
    """Where a graph runs, on how many intra-op threads, and how many runs at once share these.

    `gpu_mem_limit_bytes` bounds the GPU memory of all sessions of a model together, and its KV cache; `arena_bytes` is
    the part of this session (see `parts`). With `spins`, threads spin while they wait for the next operator of a run,
    which saves a third of a decoding step of some hundred small operators; between runs they sleep.
    `cuda_graphs` allows CUDA graphs, for those sessions that have fixed shapes. `max_rows` bounds the batches that an
    encoder's TensorRT engine is built for, as `engine` says.
    """

    device: Device = "cpu"
    threads: int = 1
    concurrency: int = 1
    gpu_mem_limit_bytes: int | None = None
    arena_bytes: int | None = None
    spins: bool = False
    cuda_graphs: bool = True
    max_rows: int = 32
    engine: Engine | None = None


def usable_cores() -> int:
    """The cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parts(config: SessionConfig, graphs: Sequence[Path], cache_bytes: int = 0) -> list[SessionConfig]:
    """The configs of sessions that share `gpu_mem_limit_bytes`, one for each of `graphs`, beside a KV cache.

    ONNX Runtime gives each session an arena of its own. Each part is the weights of its graph, and an equal share of
    what the bound leaves for activations. Raises ConfigurationError where weights and cache alone exceed the bound.
    """
    limit = config.gpu_mem_limit_bytes
    if config.device == "cpu" or limit is None:
        return [config] * len(graphs)
    weights = [sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*")) for graph in graphs]
    left = limit - cache_bytes - sum(weights)
    if left < 0:
        remedy = "" if len(set(graphs)) == len(graphs) else _TWICE
        if cache_bytes:
            remedy = f", and the KV cache {cache_bytes}; lower slots.slots or slots.max_tokens"
        raise ConfigurationError(f"gpu_mem_limit_bytes is {limit}, and the weights alone take {sum(weights)}{remedy}")
    return [replace(config, arena_bytes=own + left // len(graphs)) for own in weights]


def out_of_memory(error: Exception, config: SessionConfig) -> GenerationError | None:
    """The error of a run for which the GPU, or what `gpu_mem_limit_bytes` leaves of it, had no memory; or None."""
    if config.device == "cpu" or not (found := _NO_MEMORY.search(str(error))):
        return None
    bound = "no gpu_mem_limit_bytes is set"
    if config.gpu_mem_limit_bytes is not None:
        bound = f"gpu_mem_limit_bytes is {config.gpu_mem_limit_bytes}"
    return GenerationError(
        f"the GPU has no memory for this batch ({bound}; {found[0]}); raise it, or lower batching.max_batch_tokens"
    )


def provider_options(
    provider: str, config: SessionConfig, graph: Path | bytes = b"", *, captures: bool = False
) -> dict[str, str]:
    """The options of an execution provider, by the names that onnxruntime gives them."""
    if provider == "CPUExecutionProvider":
        return {}
    if provider == "TensorrtExecutionProvider":
        return _tensorrt_options(config, graph)
    options = {
        "use_tf32": "0",  # TF32 has ten bits of mantissa: fp32 artifacts were compared with PyTorch in fp32
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm for each new shape: seconds
    }
    if config.device == "cuda":
        # The flash and memory-efficient kernels, at all lengths. The kernel without either reads `token_offset` of
        # packed rows, which export.graphs.encoders.packed leaves empty; an explicit choice also overrides the
        # environment.
        options["sdpa_kernel"] = str(_FLASH | _MEMORY_EFFICIENT)
    bound = config.gpu_mem_limit_bytes if config.arena_bytes is None else config.arena_bytes
    if bound is not None:
        # The default strategy doubles the arena at each growth and would jump past the limit.
        options |= {"gpu_mem_limit": str(bound), "arena_extend_strategy": "kSameAsRequested"}
    if captures:
        options["enable_cuda_graph"] = "1"
    return options


def _tensorrt_options(config: SessionConfig, graph: Path | bytes) -> dict[str, str]:
    folder = str(_ENGINES.expanduser())
    options = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "True",  # the next engine of this GPU is built from measurements of the last one
        "trt_timing_cache_path": folder,
    }
    if config.engine is None:
        return options
    names = input_names(graph)
    shapes = {"min": (1, 1), "opt": config.engine.usual, "max": (config.engine.rows, config.engine.tokens)}
    for kind, (rows, tokens) in shapes.items():
        options[f"trt_profile_{kind}_shapes"] = ",".join(f"{name}:{rows}x{tokens}" for name in names)
    if config.engine.fp16:
        # Sums of squares overflow in fp16.
        options |= {"trt_fp16_enable": "True", "trt_layer_norm_fp32_fallback": "True"}
    return options


def input_names(graph: Path | bytes) -> tuple[str, ...]:
    """The inputs of a graph, read without a GPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = ERROR
    content = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return tuple(one.name for one in session.get_inputs())
