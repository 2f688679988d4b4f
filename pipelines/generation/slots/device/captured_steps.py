"""CapturedSteps: decode steps as CUDA graphs, which the device replays without the host launching each kernel.

A CUDA graph repeats the same kernels on the same addresses. Steps therefore come in few shapes: the slots from the
first one on, 1, 2, 4, ... of them, up to 512, 1,024, 2,048, ... tokens long. The longest length is read on the CPU,
while the graph is captured: it is that bound, and the lengths of the rows, on the device, say how long each is.

A CUDA graph belongs to the thread that captured it, and the engine's decode thread ends whenever nothing is left to
decode. Captured steps therefore run in a thread of their own, for as long as the model is there.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import first_line
from pipelines.generation.decoding.step_logits import StepLogits
from pipelines.generation.slots.device.logits import DeviceLogits, LogitsReader
from pipelines.runtime.session import InferenceSession

_logger = logging.getLogger(__name__)
_SHORTEST = 512  # tokens: shorter sequences share a graph


class CapturedSteps:
    """`bind_caches(first, rows)` makes a binding of neighbouring slots without the other inputs.

    `most` are the longest lengths that the graph reads on the CPU, by the name of the input, each with its bound.
    """

    def __init__(
        self,
        session: InferenceSession,
        bind_caches: "Callable[[int, int], onnxruntime.IOBinding]",
        reader: LogitsReader,
        slots: int,
        most: Mapping[str, int],
    ) -> None:
        self.works = True
        self._session, self._bind_caches, self._reader = session, bind_caches, reader
        self._slots, self._most = slots, dict(most)
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._thread = ThreadPoolExecutor(1, "captured-steps")

    def cover(self, first: int, end: int) -> tuple[int, int]:
        """The slots that a step reads that must read those from `first` to `end`."""
        return (0, min(_power_of_two(end), self._slots)) if self.works else (first, end)

    def read(
        self, first: int, feeds: Mapping[str, np.ndarray], longest: Mapping[str, int], logits_at: Sequence[int]
    ) -> StepLogits | None:
        """Read a token of each of some neighbouring slots: `feeds` are those inputs that have a value for each row.

        None where the step has none of the shapes, or cannot be captured; then no later one is tried.
        """
        rows = len(feeds["input_ids"])
        if not self.works or (first, rows) != self.cover(0, rows):
            return None
        try:
            with self._session.share():  # which ends before the run: it may be captured
                shape = self._shape(feeds, longest)
                for name, value in shape.inputs.items():
                    value.update_inplace(np.ascontiguousarray(feeds[name]))
            self._thread.submit(self._session.run_bound, shape.binding, shape.graph_id).result()
        except Exception as error:  # a step that is read twice writes the same keys and values
            self.works = False
            _logger.warning("%s decodes without CUDA graphs from now on: %s", self._session.name, first_line(error))
            return None
        return DeviceLogits(self._reader, shape.logits.data_ptr(), rows, logits_at)

    def _shape(self, feeds: Mapping[str, np.ndarray], longest: Mapping[str, int]) -> "_Shape":
        """The memory of a shape of steps, made once."""
        import onnxruntime

        rows = len(feeds["input_ids"])
        bounds = {name: min(max(_SHORTEST, _power_of_two(longest[name])), most) for name, most in self._most.items()}
        key = (rows, *bounds.values())
        if key not in self._shapes:
            make, memory, types = onnxruntime.OrtValue, self._session.memory, self._session.input_types
            binding = self._bind_caches(0, rows)
            inputs = {
                name: make.ortvalue_from_shape_and_type(list(feed.shape), types[name], memory, 0)
                for name, feed in feeds.items()
                if name in types
            }
            fixed = {"logits_at": np.arange(rows), "key_positions": np.arange(bounds["total_sequence_length"])}
            kept = {name: make.ortvalue_from_numpy(one, memory, 0) for name, one in fixed.items() if name in types}
            logits = make.ortvalue_from_shape_and_type([rows, self._reader.vocab], np.float32, memory, 0)
            for name, value in (inputs | kept).items():
                binding.bind_ortvalue_input(name, value)
            for name, bound in bounds.items():
                binding.bind_cpu_input(name, np.asarray(bound, np.int32))
            binding.bind_ortvalue_output("logits", logits)
            self._shapes[key] = _Shape(binding, len(self._shapes), inputs, kept, logits)
        return self._shapes[key]


@dataclass(frozen=True)
class _Shape:
    """The binding of all steps of one shape, and the memory in it."""

    binding: "onnxruntime.IOBinding"
    graph_id: int
    inputs: "Mapping[str, onnxruntime.OrtValue]"
    fixed: "Mapping[str, onnxruntime.OrtValue]"
    logits: "onnxruntime.OrtValue"


def _power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()
