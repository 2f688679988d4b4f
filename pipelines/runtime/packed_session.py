"""PackedSession: packed rows on a GPU. Feeds lie in pinned memory; small batches replay CUDA graphs.

A small batch takes less time on the GPU than the host needs to launch its kernels one by one. Its shape is rounded up
to one of few capacities, each captured once as a CUDA graph, whose kernels the host launches in one call. A large batch
runs as it is: several at once, so that the copies of one overlap with the kernels of another.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from pipelines.errors import ArtifactError, first_line
from pipelines.runtime.nvidia.capture import CAPTURES
from pipelines.runtime.nvidia.memory import PinnedFeeds
from pipelines.runtime.rows import Capacity, EncoderRow, Feeds, PackedRows
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig, parts

if TYPE_CHECKING:
    import onnxruntime

CAPTURED_TOKENS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
"""Tokens of the batches that are captured. At 2,048 tokens of BERT-base a recent GPU computes as long as the host
launches; each graph also keeps memory for its activations.
"""
TOKENS_PER_ROW = 16  # a captured batch has room for rows of so many tokens on average
MIN_ROWS = 8
_ON_HOST = "batch_shape"  # the only feed that a kernel reads from host memory

logger = logging.getLogger(__name__)


class PackedSession:
    """Runs batches of rows, from several threads at once.

    `captured` is a session of its own with the same graph, since capturing takes one stream for all runs: with
    `cuda_graphs` the GPU holds the weights twice. Without CUDA, as in tests, runs of fixed shapes are the same, but not
    faster.
    """

    def __init__(
        self, plain: InferenceSession, captured: InferenceSession | None, pad_token_id: int, longest: int
    ) -> None:
        """`longest`: the tokens of a row at most."""
        self.longest = longest
        self.layout = PackedRows(plain.input_names, pad_token_id)
        self._plain = plain
        self._captured = None if captured is None else CapturedRuns(captured)
        self._capacities: list[Capacity] = []
        self._pinned = PinnedFeeds()

    @classmethod
    def open(cls, graph: Path, config: SessionConfig, pad_token_id: int, longest: int) -> Self:
        """Raises as InferenceSession does. `gpu_mem_limit_bytes` is the bound of both sessions together."""
        if not config.cuda_graphs:
            return cls(InferenceSession(graph, config), None, pad_token_id, longest)
        of_plain, of_captured = parts(config, [graph, graph])
        plain = InferenceSession(graph, of_plain)
        try:
            captured = InferenceSession(graph, of_captured, captures=True)
        except ArtifactError as error:  # an operator that CUDA lacks
            logger.warning("%s runs without CUDA graphs: %s", graph, error)
            return cls(plain, None, pad_token_id, longest)
        return cls(plain, captured, pad_token_id, longest)

    def run(self, rows: Sequence[EncoderRow]) -> Feeds:
        """Every output by name, for these rows alone."""
        capacity = self.capacity(rows)
        if capacity is None or self._captured is None:
            return self._plain.run(self._pinned(self.layout.feeds(rows)))
        outputs = self._captured.replay(capacity, self.layout.feeds(rows, capacity))
        sizes = {capacity.rows: len(rows), capacity.tokens: sum(row.n_tokens for row in rows)}
        return {name: output[: sizes[len(output)]] for name, output in outputs.items()}

    def capacity(self, rows: Sequence[EncoderRow]) -> Capacity | None:
        """The smallest captured shape that holds the rows, if any."""
        lengths = [row.n_tokens for row in rows]
        n_tokens, longest = sum(lengths), max(lengths)
        return next((one for one in self._capacities if one.holds(len(lengths), n_tokens, longest)), None)

    def warm_up(self, _lengths: Sequence[int]) -> None:
        """Capture batches of rows of all lengths; where that fails, all batches run as they are."""
        if self._captured is None:
            return
        row = EncoderRow.blank(1)
        try:
            # The largest first: the others then find the memory that they need.
            for capacity in sorted(capacities(self.longest), reverse=True):
                self._captured.capture(capacity, self.layout.feeds([row], capacity))
                self._capacities.insert(0, capacity)
        except Exception as error:  # onnxruntime's error types have Exception as their only common base
            logger.warning("%s runs without CUDA graphs: %s", self._plain.name, first_line(error))
            self._capacities, self._captured = [], None

    def release_memory(self) -> None:
        """A GPU's memory has its bound: `gpu_mem_limit_bytes`."""


@dataclass(frozen=True, eq=False)
class _Captured:
    """Fixed memory of one shape, and the number of its graph."""

    number: int
    binding: "onnxruntime.IOBinding"
    inputs: Mapping[str, "onnxruntime.OrtValue"]
    outputs: Mapping[str, "onnxruntime.OrtValue"]


class CapturedRuns:
    """Runs of fixed shapes on fixed memory, all in one thread: a CUDA graph belongs to the thread that captured it."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda-graphs")
        self._runs: dict[Capacity, _Captured] = {}

    def capture(self, capacity: Capacity, feeds: Feeds) -> None:
        """Run feeds of that capacity, and keep the kernels that ran and the memory that they read."""
        self._runs[capacity] = self._thread.submit(self._capture, capacity, feeds).result()

    def replay(self, capacity: Capacity, feeds: Feeds) -> Feeds:
        """Every output by name, for feeds of a captured capacity."""
        return self._thread.submit(self._replay, self._runs[capacity], feeds).result()

    def _capture(self, capacity: Capacity, feeds: Feeds) -> _Captured:
        import onnxruntime

        session, binding = self._session, self._session.binding()
        memory = {name: "cpu" if name == _ON_HOST else session.memory for name in session.input_names}
        sizes: dict[int | str | None, int] = {"tokens": capacity.tokens, "rows": capacity.rows}
        make = onnxruntime.OrtValue
        with CAPTURES.share():
            inputs = {name: make.ortvalue_from_numpy(feeds[name].copy(), device) for name, device in memory.items()}
            outputs = {
                name: make.ortvalue_from_shape_and_type(
                    [sizes.get(size, size) for size in session.output_shapes[name]], np.float32, session.memory
                )
                for name in session.output_names
            }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        captured = _Captured(len(self._runs), binding, inputs, outputs)
        self._session.run_bound(captured.binding, captured.number)
        return captured

    def _replay(self, captured: _Captured, feeds: Feeds) -> Feeds:
        with CAPTURES.share():
            for name, value in captured.inputs.items():
                if name != _ON_HOST:  # the same for every batch of the capacity
                    value.update_inplace(feeds[name])
        self._session.run_bound(captured.binding, captured.number)
        # A copy: the array of host memory is that memory, which the next run overwrites.
        with CAPTURES.share():
            return {name: value.numpy().copy() for name, value in captured.outputs.items()}


def capacities(longest: int) -> Iterator[Capacity]:
    """The shapes that are captured, smallest first, for a model that reads `longest` tokens."""
    for tokens in CAPTURED_TOKENS:
        yield Capacity(tokens, max(MIN_ROWS, tokens // TOKENS_PER_ROW), min(tokens, longest))
