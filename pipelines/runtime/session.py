"""InferenceSession: one ONNX graph on one ONNX Runtime execution provider; ElasticSession: one for concurrent runs."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import ArtifactError, ConfigurationError, first_line

Device = Literal["cpu", "cuda", "tensorrt"]

# The first is the requested one; TensorRT needs the second for operators that it lacks.
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
_ENGINES = Path("~/.cache/sextet/tensorrt")  # building an engine takes minutes, for one GPU model: kept between starts
_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}
FASTER = 0.8
"""A row is large where a run on all threads takes at most this share of its time on a share of the threads."""
REPETITIONS = 3
_NOT_CAPTURED = -1  # the CUDA provider's number for runs without a graph
_ERROR = 3  # onnxruntime's severities: 2 is warning, 3 is error


@dataclass(frozen=True)
class SessionConfig:
    """Where a graph runs, on how many intra-op threads, and how many runs at once share these.

    `gpu_mem_limit_bytes` bounds each session's CUDA arena. With `spins`, threads spin while they wait for the next
    operator of a run, which saves a third of a decoding step of some hundred small operators; between runs they sleep.
    With `cuda_graphs`, runs that name a CUDA graph are captured and replayed (`InferenceSession.run_bound`).
    """

    device: Device = "cpu"
    threads: int = 1
    concurrency: int = 1
    gpu_mem_limit_bytes: int | None = None
    spins: bool = False
    cuda_graphs: bool = False


class InferenceSession:
    """A loaded graph; `run` may be called from several threads at once and releases the GIL.

    `graph` is its file or the content of one. `input_shapes` hold an int for a fixed dimension and its symbolic name
    for a dynamic one. Raises ArtifactError for a file that is not a graph, ConfigurationError for a device that this
    machine or this onnxruntime does not have.
    """

    def __init__(self, graph: Path | bytes, config: SessionConfig) -> None:
        providers = _providers(config)
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
            self._session = onnxruntime.InferenceSession(
                graph if isinstance(graph, bytes) else str(graph),
                options,
                providers=[(one, _provider_options(one, config)) for one in providers],
            )
        except Exception as error:  # onnxruntime's error types have Exception as their only common base
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

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name. `feeds` holds exactly `input_names`, each of its type in `input_types`."""
        return dict(zip(self.output_names, self._session.run(None, feeds), strict=True))

    def binding(self) -> "onnxruntime.IOBinding":
        """A new binding for `run_bound`: inputs and outputs in the caller's memory, on the device `memory`."""
        return self._session.io_binding()

    def run_bound(self, binding: "onnxruntime.IOBinding", cuda_graph: int | None = None) -> None:
        """Run on bound memory, which no other thread may touch meanwhile.

        With `cuda_graphs`, runs of the same number `cuda_graph`, from 1 on, must differ in the content of their memory
        alone: the first ones capture a CUDA graph, the others replay it. Inputs that are read on the CPU keep the value
        that they had then. Without a number, and on other devices, nothing is captured.
        """
        if not self.config.cuda_graphs:
            self._session.run_with_iobinding(binding)
            return
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(_NOT_CAPTURED if cuda_graph is None else cuda_graph))
        self._session.run_with_iobinding(binding, options)


class ElasticSession:
    """One graph in two sessions: `run` uses `whole` for a large batch that runs alone, else `share`; thread-safe.

    A large batch that runs alone is fastest on all threads. A small one is not, and concurrent batches each run faster
    on their share: threads of one run wait for each other after every operator, threads of different runs do not. On
    two cores two runs of one thread each do 5 to 35% more work than one run of two threads (BERT-base with 128 tokens,
    MiniLM with 16), and two runs of two threads each are slower than either.

    Two sessions hold the weights twice, so `share` is a second one only where it has fewer threads: on a CPU, with
    `threads` and `concurrency` above 1.
    """

    def __init__(self, whole: InferenceSession, share: InferenceSession) -> None:
        self.input_names = whole.input_names
        self.running = 0
        self.large_tokens: float = 0
        self._whole = whole
        self._share = share
        self._lock = Lock()

    @classmethod
    def open(cls, graph: Path, config: SessionConfig) -> Self:
        """Raises as InferenceSession does."""
        whole = InferenceSession(graph, config)
        threads = max(1, config.threads // config.concurrency)
        if config.device != "cpu" or threads == config.threads:
            return cls(whole, whole)
        return cls(whole, InferenceSession(graph, replace(config, threads=threads)))

    def calibrate(self, feeds_of: Callable[[int], Mapping[str, np.ndarray]], lengths: Iterable[int]) -> None:
        """Find the first of `lengths`, in tokens, ascending, that is faster on all threads; `feeds_of` makes a row."""
        self.large_tokens = 0
        if self._share is self._whole:
            return
        for n_tokens in lengths:
            feeds = feeds_of(n_tokens)
            if _seconds(self._whole, feeds) <= FASTER * _seconds(self._share, feeds):
                self.large_tokens = n_tokens
                return
        self.large_tokens = math.inf

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name, as InferenceSession.run."""
        with self._lock:
            small = feeds["input_ids"].size < self.large_tokens
            session = self._share if small or self.running else self._whole
            self.running += 1
        try:
            return session.run(feeds)
        finally:
            with self._lock:
                self.running -= 1


def _providers(config: SessionConfig) -> tuple[str, ...]:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if config.device not in _PROVIDERS:
        raise ConfigurationError(f"device is {config.device!r}; allowed: {', '.join(_PROVIDERS)}")
    if not set(_PROVIDERS[config.device]) <= set(available):
        raise ConfigurationError(f"device is {config.device!r}, but this onnxruntime has only {', '.join(available)}")
    if config.threads < 1:
        raise ConfigurationError(f"threads is {config.threads}; allowed: 1 and above")
    return _PROVIDERS[config.device]


def _provider_options(provider: str, config: SessionConfig) -> dict[str, str]:
    if provider == "TensorrtExecutionProvider":
        return {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(_ENGINES.expanduser())}
    if provider == "CPUExecutionProvider":
        return {}
    options = {"enable_cuda_graph": "1"} if config.cuda_graphs else {}
    if config.gpu_mem_limit_bytes is not None:
        # The default strategy doubles the arena at each growth and would jump past the limit.
        options |= {"gpu_mem_limit": str(config.gpu_mem_limit_bytes), "arena_extend_strategy": "kSameAsRequested"}
    return options


def _seconds(session: InferenceSession, feeds: Mapping[str, np.ndarray]) -> float:
    """The fastest of some runs: other load of the machine only adds time."""
    times_s = []
    for _ in range(REPETITIONS + 1):  # the first allocates
        started_at = time.perf_counter()
        session.run(feeds)
        times_s.append(time.perf_counter() - started_at)
    return min(times_s)
