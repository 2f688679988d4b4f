"""CapturedSteps: decode steps as CUDA graphs, which the device replays without the host launching each kernel.

A CUDA graph repeats the same kernels on the same addresses. Steps therefore come in few shapes: the slots from the
first one on, 1, 2, 4, ... of them, up to 512, 1,024, 2,048, ... tokens long. `total_sequence_length` is read on the
CPU, while the graph is captured: it is that bound, and `seqlens_k`, on the device, says how long each row is.

A CUDA graph belongs to the thread that captured it, and the engine's decode thread ends whenever nothing is left to
decode. Captured steps therefore run in a thread of their own, for as long as the model is there.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.generation.decoding.step_logits import StepLogits
from pipelines.generation.slots.device.logits import DeviceLogits, LogitsReader
from pipelines.runtime.session import InferenceSession

_SHORTEST = 512  # tokens: shorter sequences share a graph


class CapturedSteps:
    """`bind_caches(first, rows)` makes a binding of neighbouring slots without the other inputs."""

    def __init__(
        self,
        session: InferenceSession,
        bind_caches: "Callable[[int, int], onnxruntime.IOBinding]",
        reader: LogitsReader,
        slots: int,
        max_tokens: int,
    ) -> None:
        self._session, self._bind_caches, self._reader = session, bind_caches, reader
        self._slots, self._max_tokens = slots, max_tokens
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._thread = ThreadPoolExecutor(1, "captured-steps")

    def rows(self, end: int) -> int:
        """How many slots, from the first one on, a step reads that must read those before `end`."""
        return min(_power_of_two(end), self._slots)

    def covers(self, first: int, rows: int) -> bool:
        """Whether a step of some neighbouring slots has one of the shapes."""
        return first == 0 and rows == self.rows(rows)

    def read(self, feeds: Mapping[str, np.ndarray], longest: int, logits_at: Sequence[int]) -> StepLogits:
        """Read a token of each row: `feeds` are those of the graph but for `logits_at`, `longest` the longest row."""
        rows = len(feeds["seqlens_k"])
        shape = self._shape(rows, min(max(_SHORTEST, _power_of_two(longest)), self._max_tokens))
        for name, value in shape.inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))
        self._thread.submit(self._session.run_bound, shape.binding, shape.graph_id).result()
        return DeviceLogits(self._reader, shape.logits.data_ptr(), rows, logits_at)

    def _shape(self, rows: int, longest: int) -> "_Shape":
        """The memory of a shape of steps, made once."""
        import onnxruntime

        if (rows, longest) not in self._shapes:
            make, memory = onnxruntime.OrtValue.ortvalue_from_shape_and_type, self._session.memory
            binding = self._bind_caches(0, rows)
            sizes = {"input_ids": (rows, 1), "position_ids": (rows, 1), "seqlens_k": (rows,)}
            inputs = {
                name: make(list(size), self._session.input_types[name], memory, 0)
                for name, size in sizes.items()
                if name in self._session.input_names
            }
            every = onnxruntime.OrtValue.ortvalue_from_numpy(np.arange(rows), memory, 0)
            logits = make([rows, self._reader.vocab], np.float32, memory, 0)
            for name, value in (inputs | {"logits_at": every}).items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_cpu_input("total_sequence_length", np.asarray(longest, np.int32))
            binding.bind_ortvalue_output("logits", logits)
            self._shapes[rows, longest] = _Shape(binding, len(self._shapes), inputs, every, logits)
        return self._shapes[rows, longest]


@dataclass(frozen=True)
class _Shape:
    """The binding of all steps of one shape, and the memory in it."""

    binding: "onnxruntime.IOBinding"
    graph_id: int
    inputs: "Mapping[str, onnxruntime.OrtValue]"
    every_row: "onnxruntime.OrtValue"
    logits: "onnxruntime.OrtValue"


def _power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()
