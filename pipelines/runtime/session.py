"""InferenceSession: one ONNX graph on one ONNX Runtime execution provider."""

import re
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import ArtifactError, ConfigurationError, GenerationError, first_line
from pipelines.runtime.nvidia.capture import CAPTURES
from pipelines.runtime.providers import Device, require

_ENGINES = Path("~/.cache/sextet/tensorrt")  # building an engine takes minutes, for one GPU model: kept between starts
_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
}
_ERROR = 3  # onnxruntime's severities: 2 is warning, 3 is error
NOT_CAPTURED = -1
"""The `graph_id` of a run that is neither captured nor replayed."""
# What the arena says when its bound is reached, what it says when the device has no more, and what CUDA says.
_NO_MEMORY = re.compile(
    r"Available memory of \d+ is smaller than requested bytes of \d+"
    r"|Failed to allocate memory for requested buffer of size \d+|out of memory"
)
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

    `gpu_mem_limit_bytes` bounds the CUDA arenas of `arenas` sessions together. With `spins`, threads spin while they
    wait for the next operator of a run, which saves a third of a decoding step of some hundred small operators; between
    runs they sleep.
    `cuda_graphs` allows CUDA graphs, for those sessions that have fixed shapes. `max_rows` bounds the batches that an
    encoder's TensorRT engine is built for, as `engine` says.
    """

    device: Device = "cpu"
    threads: int = 1
    concurrency: int = 1
    gpu_mem_limit_bytes: int | None = None
    arenas: int = 1
    spins: bool = False
    cuda_graphs: bool = True
    max_rows: int = 32
    engine: Engine | None = None


class InferenceSession:
    """A loaded graph; `run` may be called from several threads at once and releases the GIL.

    `graph` is its file or the content of one. `input_shapes` hold an int for a fixed dimension and its symbolic name
    for a dynamic one. `captures`: runs on bound memory can be captured as CUDA graphs (`run_bound`); such a session has
    one stream, so its runs do not overlap. Raises ArtifactError for a file that is not a graph, ConfigurationError for
    a device that this machine or this onnxruntime does not have.
    """

    def __init__(self, graph: Path | bytes, config: SessionConfig, *, captures: bool = False) -> None:
        if config.threads < 1:
            raise ConfigurationError(f"threads is {config.threads}; allowed: 1 and above")
        providers = require(config.device)
        if isinstance(graph, Path):
            check_memory(graph, config)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERROR
        # Idle threads that spin take cores from the tokenizer, the server and neighbouring replicas.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(config.spins)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            # No silent fallback to another provider: a GPU replica on the CPU is a failure.
            with CAPTURES.load():
                self._session = onnxruntime.InferenceSession(
                    graph if isinstance(graph, bytes) else str(graph),
                    options,
                    providers=[(one, provider_options(one, config, graph, captures=captures)) for one in providers],
                    enable_fallback=0,
                )
        except Exception as error:  # onnxruntime's error types have Exception as their only common base
            if config.device != "cpu" and (failure := re.search(r"CUDA failure \d+: [^;\n]*[^;\s]", str(error))):
                raise ConfigurationError(f"device is {config.device!r}, but CUDA fails ({failure[0]})") from None
            what = "a graph in memory" if isinstance(graph, bytes) else graph
            raise ArtifactError(f"{what} cannot be loaded by onnxruntime: {first_line(error)}") from None
        if providers[0] not in self._session.get_providers():
            raise ConfigurationError(f"device is {config.device!r}, but {providers[0]} cannot start on this machine")
        self.name = "a graph in memory" if isinstance(graph, bytes) else graph.name
        self.config = config
        inputs = self._session.get_inputs()
        self.input_names: tuple[str, ...] = tuple(argument.name for argument in inputs)
        self.input_shapes: dict[str, tuple[int | str | None, ...]] = {one.name: tuple(one.shape) for one in inputs}
        self.input_types: dict[str, np.dtype[Any]] = {one.name: np.dtype(_DTYPES[one.type]) for one in inputs}
        outputs = self._session.get_outputs()
        self.output_names: tuple[str, ...] = tuple(argument.name for argument in outputs)
        self.output_shapes: dict[str, tuple[int | str | None, ...]] = {one.name: tuple(one.shape) for one in outputs}
        self.memory = "cpu" if config.device == "cpu" else "cuda"

        self._uncaptured = _run_options(NOT_CAPTURED) if captures else None
        self._captured: dict[tuple[int, int], onnxruntime.RunOptions] = {}  # by thread and graph_id
        self._shares = CAPTURES.share if captures or config.device != "cpu" else nullcontext

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name. `feeds` holds exactly `input_names`, each of its type in `input_types`."""
        try:
            with self._shares():
                outputs = self._session.run(None, feeds, self._uncaptured)
        except Exception as error:
            raise out_of_memory(error, self.config) or error from None
        return dict(zip(self.output_names, outputs, strict=True))

    def binding(self) -> "onnxruntime.IOBinding":
        """A new binding for `run_bound`: inputs and outputs in the caller's memory, on the device `memory`."""
        return self._session.io_binding()

    def run_bound(self, binding: "onnxruntime.IOBinding", graph_id: int = NOT_CAPTURED) -> None:
        """Run on bound memory, which no other thread may touch meanwhile.

        With `captures`, the first run with a `graph_id` (0 and above) is captured as a CUDA graph; each later one
        replays it, with the shapes and at the addresses of the first, whatever is bound. A graph belongs to the thread
        that captured it: another thread captures one of its own. Every operator must run on CUDA, and none may wait for
        the device. While this process loads a model, nothing is captured, and the run is a plain one. Elsewhere
        `graph_id` does nothing.
        """
        key = (threading.get_ident(), graph_id)
        try:
            if self._uncaptured is None or graph_id == NOT_CAPTURED or key in self._captured:
                with self._shares():
                    self._session.run_with_iobinding(binding, self._captured.get(key, self._uncaptured))
                return
            with CAPTURES.capture() as alone:
                options = _run_options(graph_id)
                self._session.run_with_iobinding(binding, options if alone else self._uncaptured)
                if alone:
                    self._captured[key] = options
        except Exception as error:
            raise out_of_memory(error, self.config) or error from None


def check_memory(graph: Path, config: SessionConfig) -> None:
    """Raises ConfigurationError where the weights alone exceed the bound of the GPU's memory."""
    limit = config.gpu_mem_limit_bytes
    if config.device == "cpu" or limit is None:
        return
    needed = config.arenas * sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
    if needed > limit:
        twice = ", twice as CUDA graphs need them; cuda_graphs: false halves that" if config.arenas > 1 else ""
        raise ConfigurationError(f"gpu_mem_limit_bytes is {limit}, and the weights alone take {needed}{twice}")


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
        # packed rows, which export.graphs.packed leaves empty; an explicit choice also overrides the environment.
        options["sdpa_kernel"] = str(_FLASH | _MEMORY_EFFICIENT)
    if config.gpu_mem_limit_bytes is not None:
        # The default strategy doubles the arena at each growth and would jump past the limit.
        options |= {
            "gpu_mem_limit": str(config.gpu_mem_limit_bytes // config.arenas),
            "arena_extend_strategy": "kSameAsRequested",
        }
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
    options.log_severity_level = _ERROR
    content = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return tuple(one.name for one in session.get_inputs())


def _run_options(graph_id: int) -> "onnxruntime.RunOptions":
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
