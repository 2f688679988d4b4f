"""Sharing: a weight that a graph holds several times, also transposed, becomes one (tied embeddings above all)."""

from pathlib import Path
from typing import Any

import numpy as np

_SMALL_BYTES = 1024  # below it, a node costs more than the copy


def share_weights(graph: Path) -> None:
    """Rewrite the file in place. ONNX Runtime folds the transpositions when it loads the graph."""
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
        node.input[:] = [renamed.get(name, name) for name in node.input]
    nodes = [*transposed, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    onnx.save(model, graph)


def _fingerprint(array: np.ndarray) -> tuple[Any, ...]:
    """Equal for equal arrays, also when one is the other's transpose: the sum of the bits does not depend on order."""
    bits = array.view(f"u{array.dtype.itemsize}")
    return (*sorted(array.shape), array.ndim, array.dtype, int(bits.sum(dtype=np.uint64)))
