"""Adapted graph: a slot graph with the nodes of adapters at some of its points, written when it is loaded.

One graph, and one copy of the base's weights, serves rows of different adapters in one batch. At each point, for x that
it reads, in blocks of BLOCK ranks of all adapters that the batch needs:

    adapters.down.N  (blocks, width, BLOCK)     h = x @ down           every token, every block
    adapters.mask.K  (rows, 1, ranks)           h = h * mask           a token keeps the ranks of its own adapter;
                                                                       (rows x tokens, ranks) where x has two axes
    adapters.up.N    (ranks, channels)          makes + h @ up
    adapters.shape.K (axes,)                    that of h: (rows, tokens, ranks), or (rows x tokens, ranks)

A batch without adapters gives no ranks: down is (1, width, 0), and `makes` plus zero is what it was.

Rows must not depend on their neighbours, bit for bit. The order in which ONNX Runtime's product of floats sums depends
on the number of its columns, on threads, and on whether there is a single row. Blocks of 16 columns are never divided,
and a factor other than 1 (`alpha`) keeps a single row from the kernel for one. The second product adds zeros for the
ranks of other adapters (stack.py says in which order).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import ArtifactError
from pipelines.generation.adapters.point import METADATA, Point, from_json
from pipelines.runtime.protobuf import fields, head, message, text
from pipelines.runtime.small_graph import Node, Port, vector

BLOCK = 16
ALPHA = 2.0
"""Of both products; `up` is divided by its square."""
PREFIX = "adapters."
"""Of the inputs' names."""
_GRAPH, _METADATA = 7, 14  # of ModelProto
_NODE, _INITIALIZER, _INPUT = 1, 5, 11  # of GraphProto
_OUTPUT = 2  # of NodeProto
_FLOAT, _INT64 = np.dtype(np.float32), np.dtype(np.int64)


@dataclass(frozen=True)
class Adapted:
    """A point with adapters: `number` names its weights, `kind` its mask and shape."""

    point: Point
    number: int
    kind: int

    @property
    def down(self) -> str:
        return f"{PREFIX}down.{self.number}"

    @property
    def up(self) -> str:
        return f"{PREFIX}up.{self.number}"

    @property
    def mask(self) -> str:
        return f"{PREFIX}mask.{self.kind}"

    @property
    def shape(self) -> str:
        return f"{PREFIX}shape.{self.kind}"

    def ports(self) -> list[Port]:
        """Its inputs; points of one kind share two of them."""
        mask = Port(self.mask, _FLOAT, self.point.axes)
        return [Port(self.down, _FLOAT, 3), Port(self.up, _FLOAT, 2), mask, Port(self.shape, _INT64, 1)]

    def nodes(self) -> list[Node]:
        """They make what the point made; the base makes `base` of it."""
        name, contrib = f"{PREFIX}{self.number}", "com.microsoft"
        reads, makes, product = self.point.reads, self.point.makes, {"alpha": ALPHA}
        return [
            Node("Reshape", [reads, width_name(self.point.width)], [f"{name}.tokens"]),
            Node("FusedMatMul", [f"{name}.tokens", self.down], [f"{name}.blocks"], product, contrib),
            Node("Transpose", [f"{name}.blocks"], [f"{name}.by_token"], {"perm": [1, 0, 2]}),
            Node("Reshape", [f"{name}.by_token", self.shape], [f"{name}.ranks"], {"allowzero": 1}),
            Node("Mul", [f"{name}.ranks", self.mask], [f"{name}.own"]),
            Node("FusedMatMul", [f"{name}.own", self.up], [f"{name}.change"], product, contrib),
            Node("Add", [self.base, f"{name}.change"], [makes]),
        ]

    @property
    def base(self) -> str:
        """What the base makes at the point."""
        return f"{PREFIX}{self.number}.base"


def width_name(width: int) -> str:
    """The shape (tokens, width), a constant."""
    return f"{PREFIX}width.{width}"


def points_of(graph: Path) -> list[Point]:
    """The points that a graph's file names; raises ArtifactError where it names none."""
    for number, _, entry in fields(_content(graph)):
        if number == _METADATA:
            found = {one: bytes(value) for one, _, value in fields(entry)}
            if found.get(1) == METADATA.encode():
                return from_json(found.get(2, b"").decode())
    raise ArtifactError(
        f"{graph.parent} does not say where adapters go: its cache has no slots, or an earlier release exported it; "
        "export it again"
    )


def adapted_graph(graph: Path, adapted: Sequence[Adapted]) -> bytes:
    """The ONNX model with the nodes of adapters; weights in files of their own stay there."""
    ports = {port.name: port.proto() for one in adapted for port in one.ports()}
    widths = sorted({one.point.width for one in adapted})
    added = [message(_INPUT, port) for port in ports.values()]
    added += [message(_INITIALIZER, vector(width_name(width), [-1, width])) for width in widths]
    parts: list[bytes | memoryview] = []
    for number, whole, inner in fields(_content(graph)):
        if number == _GRAPH:
            within = [*_within(inner, {one.point.makes.encode(): one for one in adapted}), *added]
            parts += [head(_GRAPH, sum(map(len, within))), *within]
        else:
            parts.append(whole)
    return b"".join(parts)


def _within(graph: memoryview, adapted: Mapping[bytes, Adapted]) -> Iterator[bytes | memoryview]:
    """The fields of a graph; behind a node that makes what a point makes stand those of adapters, which make it now."""
    for number, whole, inner in fields(graph):
        outputs = [bytes(value) for one, _, value in fields(inner) if one == _OUTPUT] if number == _NODE else []
        found = [adapted[one] for one in outputs if one in adapted]
        if not found:
            yield whole
            continue
        named = {one.point.makes.encode(): text(_OUTPUT, one.base) for one in found}
        node = b"".join(
            named.get(bytes(value), field) if one == _OUTPUT else field for one, field, value in fields(inner)
        )
        yield message(_NODE, node)
        yield from (message(_NODE, node.proto()) for one in found for node in one.nodes())


def _content(file: Path) -> memoryview:
    """Of a file of gigabytes, read as far as it is looked at."""
    return np.memmap(file, np.uint8, "r").data
