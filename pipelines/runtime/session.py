"""InferenceSession: one ONNX graph on one ONNX Runtime execution provider; ElasticSession: one for concurrent runs on
a CPU.
"""

import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import ArtifactError, ConfigurationError, first_line
from pipelines.runtime.nvidia.capture import CAPTURES
from pipelines.runtime.providers import require
from pipelines.runtime.session_config import ERROR, SessionConfig, out_of_memory, parts, provider_options

_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
}
FASTER = 0.9
"""All threads are worth it where they take at most this share of the time of a share of the threads."""
RECENT = 9  # runs of the faster session, and
COMPARED = 3  # of one on trial, that are compared: their medians forgive those that were held up
TRIAL = 1 + COMPARED  # runs of a trial: at the first, the weights of the session have left the processor's caches
PROBE = 64  # runs until the slower session is tried again; twice as many after each trial that it loses,
LONGEST = 512  # but never more than these
SOON = 8  # times as soon where the faster one's time has changed, so its neighbours have:
CHANGED = 0.7  # the smaller of both times is at most this share of the larger
GRAPH_ID = "gpu_graph_id"
NOT_CAPTURED = -1
"""The `graph_id` of a run that is neither captured nor replayed."""


class InferenceSession:
    """A loaded graph; `run` may be called from several threads at once and releases the GIL.

    `graph` is its file or the content of one, whose large weights may lie in `folder`. `input_shapes` hold an int for a
    fixed dimension and its symbolic name for a dynamic one. `captures`: runs on bound memory can be captured as CUDA
    graphs (`run_bound`); such a session has one stream, so its runs do not overlap. What a caller copies to or from a
    device, or allocates there, belongs into a block of `share`, within which nothing is captured; binding an input from
    the host copies it. Raises ArtifactError for a file that is not a graph, ConfigurationError for a device that this
    machine or this onnxruntime does not have.
    """

    def __init__(
        self, graph: Path | bytes, config: SessionConfig, *, captures: bool = False, folder: Path | None = None
    ) -> None:
        if config.threads < 1:
            raise ConfigurationError(f"threads is {config.threads}; allowed: 1 and above")
        providers = require(config.device)
        if isinstance(graph, Path) and config.arena_bytes is None:
            (config,) = parts(config, [graph])
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERROR
        # Idle threads that spin take cores from the tokenizer, the server and neighbouring replicas.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(config.spins)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
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
        self._session._model_bytes = None  # it would hold a graph in memory, to load it again for another provider
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

        self.captures = captures
        self._uncaptured = _run_options(GRAPH_ID, str(NOT_CAPTURED)) if captures else None
        self._captured: dict[tuple[int, int], onnxruntime.RunOptions] = {}  # by thread and graph_id
        self.share = CAPTURES.share if captures or config.device != "cpu" else nullcontext

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name. `feeds` holds exactly `input_names`, each of its type in `input_types`."""
        try:
            with self.share():
                outputs = self._session.run(None, feeds, self._uncaptured)
        except Exception as error:
            raise out_of_memory(error, self.config) or error from None
        return dict(zip(self.output_names, outputs, strict=True))

    def release_memory(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Run, and give back to the system what larger runs took, beside other runs. On a GPU it does nothing."""
        if self.config.device == "cpu":
            self._session.run(None, feeds, _run_options("memory.enable_memory_arena_shrinkage", "cpu:0"))

    def blank_feeds(self, **given: int) -> dict[str, np.ndarray]:
        """Zeros for each input, or what is `given` by name, with 1 in each dimension that is not fixed."""
        return {
            name: np.full(
                [size if isinstance(size, int) else 1 for size in shape], given.get(name, 0), self.input_types[name]
            )
            for name, shape in self.input_shapes.items()
        }

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
                with self.share():
                    self._session.run_with_iobinding(binding, self._captured.get(key, self._uncaptured))
                return
            with CAPTURES.capture() as alone:
                options = _run_options(GRAPH_ID, str(graph_id))
                self._session.run_with_iobinding(binding, options if alone else self._uncaptured)
                if alone:
                    self._captured[key] = options
        except Exception as error:
            raise out_of_memory(error, self.config) or error from None


class ElasticSession:
    """One graph in two sessions: `run` uses `whole` where all threads are faster, else `share`; thread-safe.

    A large batch that runs alone is fastest on all threads. A small one is not, and concurrent batches each run faster
    on their share: threads of one run wait for each other after every operator, threads of different runs do not. On
    two cores two runs of one thread each do 5 to 35% more work than one run of two threads (BERT-base with 128 tokens,
    MiniLM with 16), and two runs of two threads each are slower than either.

    Which session is faster for a lone run depends on its size and on the neighbours of the moment. So the runs
    themselves are timed, by size, and the slower session is tried again now and then, in a few runs: a machine that was
    busy at the start, or becomes busy, decides nothing for good. Threads of `whole` spin between the operators of a
    run. Where neighbours need the cores, that makes `whole` slower, and `share`, whose thread waits for no other, takes
    over.

    Two sessions hold the weights twice, so `share` is a second one only where it has fewer threads: on a CPU, with
    `threads` and `concurrency` above 1.
    """

    def __init__(self, whole: InferenceSession, share: InferenceSession) -> None:
        self.input_names = whole.input_names
        self.running = 0
        self._whole = whole
        self._share = share
        self._lock = threading.Lock()
        self._begun = 0  # runs so far: one that others joined is not timed
        self._races: defaultdict[int, _Race] = defaultdict(_Race)

    @classmethod
    def open(cls, graph: Path, config: SessionConfig) -> Self:
        """Raises as InferenceSession does."""
        threads = max(1, config.threads // config.concurrency)
        if config.device != "cpu" or threads == config.threads:
            whole = InferenceSession(graph, config)
            return cls(whole, whole)
        whole = InferenceSession(graph, replace(config, spins=True))
        return cls(whole, InferenceSession(graph, replace(config, threads=threads)))

    def warm_up(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Run each session once: the first run of a size allocates its memory."""
        for session in {self._whole, self._share}:
            session.run(feeds)

    def release_memory(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Of both sessions, as InferenceSession.release_memory."""
        for session in {self._whole, self._share}:
            session.release_memory(feeds)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name, as InferenceSession.run."""
        if self._share is self._whole:
            return self._whole.run(feeds)
        with self._lock:
            race = None if self.running else self._races[_size(feeds)]
            on_all_threads = race is not None and race.on_all_threads()
            self.running += 1
            self._begun += 1
            number = self._begun
        began_at = time.perf_counter()
        try:
            outputs = (self._whole if on_all_threads else self._share).run(feeds)
            seconds = time.perf_counter() - began_at
        finally:
            with self._lock:
                self.running -= 1
        with self._lock:
            if race is not None and number == self._begun:
                race.note(seconds)
        return outputs


class _Race:
    """Which of two sessions takes lone runs of one size, by their last runs: the faster one, or the one on trial."""

    def __init__(self) -> None:
        self._seconds: dict[bool, deque[float]] = {whole: deque(maxlen=RECENT) for whole in (True, False)}
        self._runs = 0  # since the last trial
        self._until_trial = PROBE
        self._took = 0.0  # seconds of the faster one at the last trial
        self._whole, self._on_trial, self._is_cold = True, True, True

    def on_all_threads(self) -> bool:
        """Whether the next run goes to all threads."""
        return self._whole

    def note(self, seconds: float) -> None:
        """A run has ended that no other joined."""
        if self._is_cold:
            self._is_cold = False
            return
        mine = self._seconds[self._whole]
        mine.append(seconds)
        if self._on_trial:
            lost = sum(not self._would_win(one) for one in mine)
            if len(mine) == COMPARED or 2 * lost > COMPARED:
                self._end_trial()
        else:
            self._runs += 1
            if self._runs >= self._until_trial // (SOON if self._has_changed(median(mine)) else 1):
                self._try(whole=not self._whole)

    def _try(self, *, whole: bool) -> None:
        self._whole, self._on_trial, self._is_cold = whole, True, True
        self._seconds[whole].clear()

    def _end_trial(self) -> None:
        if not self._seconds[not self._whole]:
            self._try(whole=not self._whole)
            return
        has_won = self._would_win(median(self._seconds[self._whole]))
        self._until_trial = PROBE if has_won else min(2 * self._until_trial, LONGEST)
        self._whole = self._whole if has_won else not self._whole
        self._took = median(self._seconds[self._whole])
        self._on_trial, self._is_cold, self._runs = False, not has_won, 0

    def _would_win(self, seconds: float) -> bool:
        """Whether a session with such runs takes over from the other; the first one has no other yet."""
        other = self._seconds[not self._whole]
        if not other:
            return True
        return seconds <= FASTER * median(other) if self._whole else FASTER * seconds < median(other)

    def _has_changed(self, seconds: float) -> bool:
        return min(seconds, self._took) <= CHANGED * max(seconds, self._took)


def _size(feeds: Mapping[str, np.ndarray]) -> int:
    """Runs of equal sizes have token numbers within a factor of two."""
    return int(feeds["input_ids"].size).bit_length()


def _run_options(key: str, value: str) -> "onnxruntime.RunOptions":
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry(key, value)
    return options
