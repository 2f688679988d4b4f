"""DeviceCache: KV cache slots in device memory, which ONNX Runtime alone can reach: small graphs copy them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.small_graph import Node, Port, small_graph

_INT64 = np.dtype(np.int64)
_Parts = dict[str, int]
"""Where a slot's part of each buffer begins, by the buffer's name."""


class DeviceCache:
    """A buffer (slots, heads, max_tokens, head_dim) for each of `dtypes`, by name; `memory` is that of the sessions.

    `dtypes` are the buffers' by name. The device holds these buffers alone. What `save` returns lies in the host's
    memory.
    """

    def __init__(
        self, dtypes: "Mapping[str, np.dtype[Any]]", shapes: Mapping[str, Sequence[int]], config: SessionConfig
    ) -> None:
        config = replace(config, cuda_graphs=False)
        names = tuple(dtypes)
        self.dtypes, self._shapes = dict(dtypes), {name: tuple(shapes[name]) for name in names}
        self._copying = InferenceSession(_copying(dtypes), config)
        self._saving = InferenceSession(_saving(dtypes), config)
        self._restoring = InferenceSession(_restoring(dtypes), config)
        self.memory = self._copying.memory
        with self._copying.share():
            self._buffers = {name: self._made(self._shapes[name], dtypes[name]) for name in names}
            self._clear()

    def place(self, name: str, first: int, rows: int) -> "tuple[str, int, np.dtype[Any], tuple[int, ...], int]":
        """What binds some neighbouring slots of a buffer: device, its number, dtype, shape, address."""
        shape = self._shapes[name][1:]
        start = self._buffers[name].data_ptr() + first * int(np.prod(shape)) * self.dtypes[name].itemsize
        return self.memory, 0, self.dtypes[name], (rows, *shape), start

    def copy(self, sources: Sequence[int], targets: Sequence[int], tokens: int, start: int = 0) -> None:
        """As SlotModel.copy; it copies whole slots, which costs a device little."""
        with self._copying.share():
            spared = {slot: self._spare() for slot in set(sources) & set(targets)}  # a source that is also a target
            for slot, spare in spared.items():
                self._copy(self._parts(slot), _addresses(spare))
            for source, target in zip(sources, targets, strict=True):
                self._copy(_addresses(spared[source]) if source in spared else self._parts(source), self._parts(target))

    def save(self, slot: int, tokens: int) -> dict[str, np.ndarray]:
        """As SlotModel.save: (heads, tokens, head_dim) by name, in the host's memory."""
        binding = self._saving.binding()
        with self._saving.share():
            self._bind_slot(binding.bind_input, slot, "")
            for name, value in (("start", 0), ("end", tokens), ("axis", 1)):
                binding.bind_cpu_input(name, np.asarray([value], np.int64))
            for name in self.dtypes:
                binding.bind_output(f"{name}.kept", "cpu")
            self._saving.run_bound(binding)
            return dict(zip(self.dtypes, binding.copy_outputs_to_cpu(), strict=True))

    def restore(self, slot: int, saved: Mapping[str, np.ndarray]) -> None:
        """As SlotModel.restore; what follows the saved tokens becomes zero."""
        binding = self._restoring.binding()
        name, kept = next(iter(saved.items()))
        pads = [0, 0, 0, 0, self._shapes[name][2] - kept.shape[1], 0]
        with self._restoring.share():
            binding.bind_cpu_input("pads", np.asarray(pads, np.int64))
            for name, kept in saved.items():
                binding.bind_cpu_input(f"{name}.kept", kept)
            self._bind_slot(binding.bind_output, slot, "")
            self._restoring.run_bound(binding)

    def _clear(self) -> None:
        """Fill every slot with zeros: attention without a fused kernel multiplies values behind the end of a row by
        zero, and memory that was never written may hold what is not a number.
        """
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_numpy
        zeros = {name: np.zeros(self._shapes[name][1:], dtype) for name, dtype in self.dtypes.items()}
        blank = {name: make(values, self.memory, 0) for name, values in zeros.items()}
        for slot in range(next(iter(self._shapes.values()))[0]):
            self._copy(_addresses(blank), self._parts(slot))

    def _bind_slot(self, bind: Any, slot: int, suffix: str) -> None:
        for name in self.dtypes:
            memory, number, dtype, shape, address = self.place(name, slot, 1)
            bind(f"{name}{suffix}", memory, number, dtype, shape[1:], address)

    def _parts(self, slot: int) -> _Parts:
        return {name: self.place(name, slot, 1)[-1] for name in self.dtypes}

    def _spare(self) -> "dict[str, onnxruntime.OrtValue]":
        """New device memory for the content of one slot."""
        return {name: self._made(self._shapes[name][1:], dtype) for name, dtype in self.dtypes.items()}

    def _made(self, shape: Sequence[int], dtype: "np.dtype[Any]") -> "onnxruntime.OrtValue":
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, self.memory, 0)

    def _copy(self, source: _Parts, target: _Parts) -> None:
        binding = self._copying.binding()
        for name, dtype in self.dtypes.items():
            shape = (int(np.prod(self._shapes[name][1:])),)
            binding.bind_input(name, self.memory, 0, dtype, shape, source[name])
            binding.bind_output(f"{name}.copy", self.memory, 0, dtype, shape, target[name])
        self._copying.run_bound(binding)


def _addresses(values: "Mapping[str, onnxruntime.OrtValue]") -> _Parts:
    return {name: value.data_ptr() for name, value in values.items()}


def _copying(dtypes: "Mapping[str, np.dtype[Any]]") -> bytes:
    """NAME (elements,) -> NAME.copy."""
    return small_graph(
        [Node("Identity", [name], [f"{name}.copy"]) for name in dtypes],
        [Port(name, dtype, 1) for name, dtype in dtypes.items()],
        [Port(f"{name}.copy", dtype, 1) for name, dtype in dtypes.items()],
    )


def _saving(dtypes: "Mapping[str, np.dtype[Any]]") -> bytes:
    """NAME (heads, max_tokens, head_dim) -> NAME.kept (heads, tokens, head_dim), from `start` to `end` of `axis`."""
    bounds = ("start", "end", "axis")
    return small_graph(
        [Node("Slice", [name, *bounds], [f"{name}.kept"]) for name in dtypes],
        [*(Port(name, dtype, 3) for name, dtype in dtypes.items()), *(Port(name, _INT64, 1) for name in bounds)],
        [Port(f"{name}.kept", dtype, 3) for name, dtype in dtypes.items()],
    )


def _restoring(dtypes: "Mapping[str, np.dtype[Any]]") -> bytes:
    """NAME.kept (heads, tokens, head_dim) -> NAME (heads, max_tokens, head_dim), which `pads` lengthen."""
    return small_graph(
        [Node("Pad", [f"{name}.kept", "pads"], [name]) for name in dtypes],
        [*(Port(f"{name}.kept", dtype, 3) for name, dtype in dtypes.items()), Port("pads", _INT64, 1)],
        [Port(name, dtype, 3) for name, dtype in dtypes.items()],
    )
