"""AdapterStack: the weights of several adapters as inputs of one graph, and what a batch of rows is fed of them.

The adapters lie one after the other in one array for each side of each point. A batch is fed the part from the first
adapter that it needs to the last: a view, nothing is copied.

The second product sums over the ranks of that part, in panels of PANEL: those of one adapter must fall into panels in
the same way wherever the part begins. So an adapter has a power of two of ranks at a point, or whole panels, the others
zeros, and larger adapters come first. What has more than a panel is exact where the layer makes more than PANEL
channels for each thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.errors import ConfigurationError
from pipelines.generation.adapters.graph import ALPHA, BLOCK, Adapted, adapted_graph, points_of
from pipelines.generation.adapters.lora import Lora
from pipelines.generation.adapters.point import Point
from pipelines.misfit import nearest
from pipelines.runtime.artifact import AdapterFacts

MAX_ADAPTERS = 16
PANEL = 128
"""Ranks that one panel of ONNX Runtime's product (MLAS) has at least."""


class AdapterStack:
    """A row of adapter n, from 1 on, is changed by `adapters[n - 1]`, one of 0 by none.

    Raises ConfigurationError for an adapter that does not fit the points of the base, naming what differs. The order of
    `bind` and runs is the caller's: one thread at a time.
    """

    def __init__(self, base: str, points: Sequence[Point], adapters: Sequence[Lora]) -> None:
        for one in adapters:
            _check_fit(base, points, one)
        ordered = sorted(adapters, key=lambda one: max(_ranks(point, one) for point in points), reverse=True)
        self._places = np.asarray([0, *(1 + ordered.index(one) for one in adapters)])  # by the number of an adapter
        kinds: dict[tuple[int, tuple[int, ...]], int] = {}
        self._stacked: list[_Stacked] = []
        for point in points:
            blocks = _blocks([_ranks(point, one) for one in ordered])
            if any(blocks):
                kind = kinds.setdefault((point.axes, blocks), len(kinds))
                self._stacked.append(_Stacked(Adapted(point, len(self._stacked), kind), blocks, ordered))
        self._kinds = {one.adapted.kind: one for one in self._stacked}  # one point of each
        self.adapters = tuple(
            AdapterFacts(one.name, one.base, one.digest, one.rank, sum(at.bytes_of(place) for at in self._stacked))
            for one, place in zip(adapters, self._places[1:] - 1, strict=True)
        )
        self._bound: dict[int, _Bound] = {}

    @classmethod
    def open(cls, graph: Path, folders: Mapping[str, Path]) -> Self:
        """The adapters of some folders, by name, over the graph of an artifact; raises as `Lora.read` does too."""
        if len(folders) > MAX_ADAPTERS:
            raise ConfigurationError(f"adapters has {len(folders)} elements; allowed: at most {MAX_ADAPTERS}")
        points = points_of(graph)
        return cls(str(graph.parent), points, [Lora.read(name, folder) for name, folder in folders.items()])

    def graph(self, base: Path) -> bytes:
        """The base's graph with these adapters as inputs."""
        return adapted_graph(base, [one.adapted for one in self._stacked])

    def blank_feeds(self) -> dict[str, np.ndarray]:
        """What a read of one token of one row is fed that no adapter changes. Any thread may call it."""
        feeds = {}
        for one in self._stacked:
            feeds[one.adapted.down] = np.empty((1, one.down.shape[1], 0), np.float32)
            feeds[one.adapted.up] = one.up[:0]
        for kind in self._kinds.values():
            feeds[kind.adapted.mask], feeds[kind.adapted.shape] = kind.mask(np.zeros(1, np.int64), 1, 0, 0)
        return feeds

    def bind(self, binding: "onnxruntime.IOBinding", rows: np.ndarray, tokens: int) -> None:
        """Bind what a read of `tokens` tokens of each of `rows`, (rows,) adapters, is fed. Bindings are kept by the
        caller, and run before the next call.
        """
        key, before = (rows.tobytes(), tokens), self._bound.get(id(binding))
        if before is not None and before.key == key:  # as in most steps: the same rows go on
            return
        rows = self._places[rows]
        used = rows[rows > 0]
        part = (int(used.min()) - 1, int(used.max())) if len(used) else (0, 0)
        if before is None or before.part != part:
            for one in self._stacked:
                one.bind(binding, *part)
        fed = [(kind.adapted, *kind.mask(rows, tokens, *part)) for kind in self._kinds.values()]
        for adapted, mask, shape in fed:
            binding.bind_cpu_input(adapted.mask, mask)
            binding.bind_cpu_input(adapted.shape, shape)
        self._bound[id(binding)] = _Bound(key, part, fed)


@dataclass(frozen=True)
class _Bound:
    """What a binding has: for which rows, the weights of which adapters, and arrays that its runs read."""

    key: tuple[bytes, int]
    part: tuple[int, int]
    fed: list[tuple[Adapted, np.ndarray, np.ndarray]]


class _Stacked:
    """The weights of all adapters at one point: `down` (blocks, width, BLOCK), `up` (ranks, channels), float32.

    `blocks` are those of each adapter.
    """

    def __init__(self, adapted: Adapted, blocks: Sequence[int], adapters: Sequence[Lora]) -> None:
        self.adapted, point = adapted, adapted.point
        self._starts = [0, *accumulate(blocks)]
        channels = sum(part.width for part in point.parts)
        down = np.zeros((self._starts[-1] * BLOCK, point.width), np.float32)
        self.up = np.zeros((len(down), channels), np.float32)
        for start, one in zip(self._starts, adapters, strict=False):
            at, channel = start * BLOCK, 0
            for part in point.parts:
                if part.layer in one.layers:
                    first, second = one.layers[part.layer]
                    end = at + len(first)
                    down[at:end] = first
                    self.up[at:end, channel : channel + part.width] = second.T / np.float32(ALPHA**2)
                    at = end
                channel += part.width
        by_block = down.reshape(-1, BLOCK, point.width).transpose(0, 2, 1)
        self.down = np.ascontiguousarray(by_block)

    def bytes_of(self, number: int) -> int:
        """The memory of one adapter's weights."""
        start, stop = self._starts[number : number + 2]
        return self.down[start:stop].nbytes + self.up[start * BLOCK : stop * BLOCK].nbytes

    def bind(self, binding: "onnxruntime.IOBinding", first: int, end: int) -> None:
        """Bind the weights of the adapters from `first` to `end`."""
        start, stop = self._starts[first], self._starts[end]
        down, up = self.down[start:stop], self.up[start * BLOCK : stop * BLOCK]
        shape = down.shape if start < stop else (1, self.down.shape[1], 0)
        binding.bind_input(self.adapted.down, "cpu", 0, np.float32, shape, down.ctypes.data)
        binding.bind_input(self.adapted.up, "cpu", 0, np.float32, up.shape, up.ctypes.data)

    def mask(self, rows: np.ndarray, tokens: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Which ranks of the adapters from `first` to `end` each row keeps, and the shape of what it is multiplied
        with.
        """
        starts = np.asarray(self._starts[first : end + 1]) * BLOCK
        n_ranks = int(starts[-1] - starts[0])
        owners = np.repeat(np.arange(first, end) + 1, np.diff(starts))  # (ranks,)
        mask = (rows[:, None] == owners).astype(np.float32)  # (rows, ranks)
        if self.adapted.point.axes == 2:
            return np.repeat(mask, tokens, axis=0), np.asarray([len(rows) * tokens, n_ranks])
        return mask[:, None], np.asarray([len(rows), tokens, n_ranks])


def _ranks(point: Point, adapter: Lora) -> int:
    """Those of an adapter at a point."""
    return sum(len(adapter.layers[part.layer][0]) for part in point.parts if part.layer in adapter.layers)


def _blocks(ranks: Sequence[int]) -> tuple[int, ...]:
    """How many blocks each adapter has at a point, where it has so many ranks: none less than a later one, or none."""
    blocks: list[int] = []
    for one in reversed(ranks):
        own = max(BLOCK, 1 << (one - 1).bit_length()) if one <= PANEL else -(-one // PANEL) * PANEL
        blocks.append(max([own // BLOCK, *blocks]) if one else 0)
    return tuple(reversed(blocks))


def _check_fit(base: str, points: Sequence[Point], adapter: Lora) -> None:
    """Raise ConfigurationError that names the first difference."""
    shapes = {part.layer: (point.width, part.width) for point in points for part in point.parts}
    what = f"the adapter {adapter.name} does not fit {base}"
    for layer, (first, second) in adapter.layers.items():
        if layer not in shapes:
            raise ConfigurationError(f"{what}: that has no layer {layer} which takes adapters{nearest(layer, shapes)}")
        given = (first.shape[1], second.shape[0])
        if given != shapes[layer]:
            shape, own = (f"{read} channels to {made}" for read, made in (given, shapes[layer]))
            raise ConfigurationError(f"{what}: its {layer} is of {shape}, the base's of {own}")
