"""DeviceSources: sources of an encoder-decoder, encoded on the device and written into its slots there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.generation.slots.device.cache import DeviceCache
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.small_graph import Node, Port, small_graph

_INT64 = np.dtype(np.int64)


class DeviceSources:
    """`encoder` writes `cross_key_values`, (parts, rows, heads, tokens, head_dim), one part for each buffer of `cross`.

    `ends` keeps the last token of each source. Both are in the order of the parts.
    """

    def __init__(self, encoder: InferenceSession, cross: DeviceCache, ends: DeviceCache) -> None:
        self._encoder, self._cross, self._ends = encoder, cross, ends
        config = replace(encoder.config, cuda_graphs=False)
        self._writing = InferenceSession(_writing(cross.dtypes, ends.dtypes), config)

    def encode(self, feeds: Mapping[str, np.ndarray]) -> "onnxruntime.OrtValue":
        """The keys and values of some sources, which stay on the device."""
        binding = self._encoder.binding()
        with self._encoder.share():
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            binding.bind_output("cross_key_values", self._encoder.memory)
            self._encoder.run_bound(binding)
        (encoded,) = binding.get_outputs()
        return encoded

    def write(self, encoded: "onnxruntime.OrtValue", row: int, tokens: int, slot: int) -> None:
        """Write a row of encoded sources, `tokens` long, into a slot; what follows them there is not defined."""
        binding, memory = self._writing.binding(), self._writing.memory
        binding.bind_ortvalue_input("encoded", encoded)
        most = next(self._cross.place(name, slot, 1)[3][2] for name in self._cross.dtypes)
        pads = [0, 0, 0, 0, 0, 0, most - encoded.shape()[3], 0]
        with self._writing.share():
            for name, value in (("row", np.asarray(row)), ("last", np.asarray(tokens - 1)), ("pads", np.asarray(pads))):
                binding.bind_cpu_input(name, value.astype(np.int64))
            for cache in (self._cross, self._ends):
                for name in cache.dtypes:
                    _, number, dtype, (_, heads, length, width), address = cache.place(name, slot, 1)
                    shape = (1, heads, length, width) if cache is self._cross else (1, heads, width)
                    binding.bind_output(name, memory, number, dtype, shape, address)
            self._writing.run_bound(binding)


def _writing(cross: "Mapping[str, np.dtype[Any]]", ends: "Mapping[str, np.dtype[Any]]") -> bytes:
    """encoded -> of one `row` each part, (1, heads, max_tokens, head_dim), lengthened by `pads`, and its token `last`,
    (1, heads, head_dim).
    """
    (dtype,) = set(cross.values())
    return small_graph(
        [
            Node("Gather", ["encoded", "row"], ["one"], {"axis": 1}),  # (parts, heads, tokens, head_dim)
            Node("Pad", ["one", "pads"], ["padded"]),
            Node("Split", ["padded"], list(cross), {"axis": 0}),
            Node("Gather", ["one", "last"], ["end"], {"axis": 2}),  # (parts, heads, head_dim)
            Node("Split", ["end"], list(ends), {"axis": 0}),
        ],
        [Port("encoded", dtype, 5), Port("row", _INT64, 0), Port("last", _INT64, 0), Port("pads", _INT64, 1)],
        [*(Port(name, dtype, 4) for name in cross), *(Port(name, dtype, 3) for name in ends)],
    )
