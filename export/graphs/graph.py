"""Graph: the nodes of an ONNX model, indexed by their outputs and inputs, for rewriting."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_FILE_BYTES = 1_900_000_000  # a protobuf holds no more than 2 GiB
_SMALL_BYTES = 1024  # below it, a node costs more than the copy
Graphs = dict[str, Path]
"""ONNX file by role: `model`, or `encoder` and `decoder`; of Optimum's two, `decoder` runs the first step and
`decoder_with_past` the others."""


class Graph:
    """The nodes of an ONNX model. `save` writes changes into the model; until then the model has its old nodes.

    By the name of a tensor: `makers` is the node that makes it, `readers` the nodes that read it, `weights` its values.
    """

    makers: dict[str, Any]
    readers: dict[str, list[Any]]

    def __init__(self, model: Any) -> None:
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.weights = {one.name: one for one in model.graph.initializer}
        self._index()

    def of_type(self, op_type: str) -> Iterator[Any]:
        """The nodes of a type; a node that was replaced meanwhile is left out."""
        for node in [one for one in self.nodes if one.op_type == op_type]:
            if any(node is one for one in self.nodes):
                yield node

    def only_reader(self, node: Any, op_type: str) -> Any:
        """The only reader of `node` (Shape nodes do not count), if it is of the type; else None."""
        readers = [one for one in self.readers.get(node.output[0], []) if one.op_type != "Shape"]
        return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None

    def behind(self, name: str, op_type: str, through: Sequence[str]) -> Any:
        """The nearest node of a type before a tensor, through nodes of the types `through`; None: there is none."""
        node = self.makers.get(name)
        if node is None or node.op_type == op_type:
            return node
        if node.op_type not in through:
            return None
        ways = (self.behind(one, op_type, through) for one in node.input)
        return next((way for way in ways if way is not None), None)

    def replace(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Replace nodes; the new ones stand where the first old one stood, so everything they read comes before."""
        gone = {id(node) for node in old}
        first = min(index for index, node in enumerate(self.nodes) if id(node) in gone)
        kept = [[node for node in part if id(node) not in gone] for part in (self.nodes[:first], self.nodes[first:])]
        self.nodes = [*kept[0], *new, *kept[1]]
        self._index()

    def begin_with(self, new: Sequence[Any]) -> None:
        """Put nodes before all others."""
        self.nodes = [*new, *self.nodes]
        self._index()

    def read_instead(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        for node in self.readers.get(old, []):
            node.input[:] = [new if name == old else name for name in node.input]
        self._index()

    def drop_unread(self) -> None:
        """Drop the nodes and weights that no output depends on."""
        needed = {one.name for one in self.model.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed.update(reads(node))
        self.nodes = kept[::-1]
        self.weights = {name: one for name, one in self.weights.items() if name in needed}
        self._index()

    def values(self, name: str) -> np.ndarray:
        """The values of a weight."""
        from onnx import numpy_helper

        array: np.ndarray = numpy_helper.to_array(self.weights[name])
        return array

    def side_by_side(self, names: Sequence[str]) -> str:
        """The name of a new weight: several weights, concatenated along the last axis."""
        from onnx import numpy_helper

        name = " ".join(names)
        self.weights[name] = numpy_helper.from_array(np.concatenate([self.values(one) for one in names], -1), name)
        return name

    def save(self) -> None:
        self.drop_unread()
        del self.model.graph.node[:], self.model.graph.initializer[:], self.model.graph.value_info[:]
        self.model.graph.node.extend(self.nodes)
        self.model.graph.initializer.extend(self.weights.values())

    def _index(self) -> None:
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)


def reads(node: Any) -> Iterator[str]:
    """Every name that a node reads, also inside its branches."""
    yield from node.input
    for inner in _inside(node):
        yield from reads(inner)


def _inside(node: Any) -> Iterator[Any]:
    """The nodes of its branches."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from attribute.g.node


def _read_instead(node: Any, names: Mapping[str, str]) -> None:
    """Let a node, and those inside its branches, read other names."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for inner in _inside(node):
        _read_instead(inner, names)


def sort(model: Any) -> None:
    """Let every node stand after those that make what it reads, also inside its branches; others keep their order."""
    made = {name for node in model.graph.node for name in node.output if name}
    waiting, ready, ordered = list(model.graph.node), set[str](), []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready for name in reads(node) if name in made):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError("its nodes read each other")
        waiting = later
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def name_weights_directly(model: Any) -> None:
    """Let every node read the weights themselves: the exporter hides one that has several readers behind Identity."""
    initializers = {one.name for one in model.graph.initializer}
    outputs = {one.name for one in model.graph.output}
    behind: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in initializers and node.output[0] not in outputs:
            behind[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    for node in kept:
        _read_instead(node, behind)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def save(model: Any, path: Path) -> None:
    """Write a model in place of the file and of the weights beside it; large weights go into a file of their own."""
    import onnx

    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)  # onnx would append to it
    large = sum(len(one.raw_data) for one in model.graph.initializer) > LARGEST_FILE_BYTES
    onnx.save(model, path, save_as_external_data=large, location=weights.name)
    if large:  # they are no longer in the model
        onnx.load_external_data_for_model(model, str(path.parent))


def share_weights(graph: Path) -> None:
    """Store equal weights once, also where one is the transpose of the other (tied embeddings above all); in place.

    ONNX Runtime folds the transpositions when it loads the graph.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(graph)
    seen: dict[tuple[Any, ...], list[tuple[str, np.ndarray]]] = {}
    renamed: dict[str, str] = {}
    transposed: list[Any] = []
    kept = []
    for initializer in model.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if array.nbytes < _SMALL_BYTES or array.ndim > 2:
            kept.append(initializer)
            continue
        alike = seen.setdefault(_fingerprint(array), [])
        if same := next((name for name, other in alike if np.array_equal(array, other)), None):
            renamed[initializer.name] = same
        elif same := next((name for name, other in alike if np.array_equal(array.T, other)), None):
            transposed.append(helper.make_node("Transpose", [same], [initializer.name], perm=[1, 0]))
        else:
            alike.append((initializer.name, array))
            kept.append(initializer)
    if not renamed and not transposed:
        return
    for node in model.graph.node:
        _read_instead(node, renamed)
    nodes = [*transposed, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    save(model, graph)


def _fingerprint(array: np.ndarray) -> tuple[Any, ...]:
    """Equal for equal arrays, also when one is the other's transpose: the sum of the bits does not depend on order."""
    bits = array.view(f"u{array.dtype.itemsize}")
    return (*sorted(array.shape), array.ndim, array.dtype, int(bits.sum(dtype=np.uint64)))
