"""Slot fusions: rewrite a traced slot graph into fewer nodes that compute the same.

In a step of one token, dispatching the nodes takes as long as their arithmetic. ONNX Runtime fuses many nodes when it
loads a graph, but not these:

* Reshapes around GroupQueryAttention, which reads and writes (rows, tokens, heads x head_dim): they cancel out.
* MatMuls of one input become one MatMul: query, key and value, which the operator takes packed; gate and up of a gated
  feed-forward network, which are split after it.
* An Add that a root mean square norm reads becomes one operator with the norm.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.graphs.graph import Graph

_DOMAIN = "com.microsoft"
_AXES_OF_SUMS = 3  # of what the operator that adds and normalizes takes
ROOT_MEAN_SQUARE = "RootMeanSquareNorm"
"""The node that export.graphs.slot_graph traces such a norm to: (values, weight) -> values, with `epsilon` and the
`axes` of the values.
"""


def fuse(model: Any) -> None:
    """Rewrite the graph of an ONNX model in place."""
    graph = Graph(model)
    for attention in graph.of_type("GroupQueryAttention"):
        for index in range(3):
            attention.input[index] = _before_views(graph, attention.input[index])
        _read_before_views(graph, attention.output[0])
    graph.drop_unread()
    for attention in graph.of_type("GroupQueryAttention"):
        _pack(graph, attention)
    for product in graph.of_type("MatMul"):
        _join_pair(graph, product)
    for norm in graph.of_type(ROOT_MEAN_SQUARE):
        _name_norm(graph, norm)
    graph.save()


def _before_views(graph: Graph, name: str) -> str:
    """The tensor (rows, tokens, width) that reshapes alone turned into `name`."""
    seen = name
    while (maker := graph.makers.get(seen)) is not None and maker.op_type == "Reshape":
        seen = maker.input[0]
        if _axes(graph, seen) == 3:
            name = seen
    return name


def _read_before_views(graph: Graph, name: str) -> None:
    """Let nodes read the tensor `name` (rows, tokens, width) instead of reshaped copies of the same shape."""
    seen = name
    while len(views := [one for one in graph.readers.get(seen, []) if one.op_type != "Shape"]) == 1:
        if views[0].op_type != "Reshape":
            return
        seen = views[0].output[0]
        if _axes(graph, seen) == 3:
            graph.read_instead(seen, name)
            seen = name


def _axes(graph: Graph, name: str) -> int | None:
    """The number of axes of a tensor; None where its maker does not tell."""
    maker = graph.makers.get(name)
    if maker is None:
        return None
    if maker.op_type == "Reshape":
        shape = graph.makers.get(maker.input[1])
        return len(shape.input) if shape is not None and shape.op_type == "Concat" else None
    if maker.op_type == "Split":
        return _axes(graph, maker.input[0])
    if maker.op_type == "Add":
        return max((_axes(graph, one) or 0 for one in maker.input), default=0) or None
    return 3 if maker.op_type == "MatMul" and maker.input[1] in graph.weights else None  # Gemm alone has 2


def _pack(graph: Graph, attention: Any) -> None:
    """Give the operator query, key and value as one tensor."""
    from onnx import helper

    names = list(attention.input[:3])
    split = graph.makers.get(names[0])
    if split is not None and split.op_type == "Split" and list(split.output) == names:
        packed = split.input[0]
    else:
        biases = [_bias(graph, name) for name in names]
        products = [name if bias is None else bias[0] for name, bias in zip(names, biases, strict=True)]
        if len({bias is None for bias in biases}) != 1 or not (joined := _join(graph, products)):
            return
        packed, old, new = joined
        if added := [bias[1] for bias in biases if bias is not None]:
            old += [graph.makers[name] for name in names]
            new.append(helper.make_node("Add", [packed, graph.side_by_side(added)], [f"{packed}_biased"]))
            packed = f"{packed}_biased"
        graph.replace(old, new)
    attention.input[:3] = [packed, "", ""]
    graph.drop_unread()


def _bias(graph: Graph, name: str) -> tuple[str, str] | None:
    """The other operand and the weight, where a tensor is a sum with a weight; else None."""
    maker = graph.makers.get(name)
    if maker is None or maker.op_type != "Add":
        return None
    weights = [one for one in maker.input if one in graph.weights]
    others = [one for one in maker.input if one not in graph.weights]
    return (others[0], weights[0]) if len(weights) == 1 else None


def _join(graph: Graph, names: Sequence[str]) -> tuple[str, list[Any], list[Any]] | None:
    """One MatMul in place of several with one input: its output, the old and the new nodes. None where they differ."""
    from onnx import helper

    makers = [graph.makers.get(name) for name in names]
    products = [one for one in makers if one is not None and one.op_type == "MatMul" and one.input[1] in graph.weights]
    if len(products) != len(names) or len({one.input[0] for one in products}) != 1:
        return None
    weight = graph.side_by_side([one.input[1] for one in products])
    output = f"{names[0]}_joined"
    return output, products, [helper.make_node("MatMul", [products[0].input[0], weight], [output], output)]


def _join_pair(graph: Graph, product: Any) -> None:
    """One MatMul and a Split in place of two MatMuls with one input, such as gate and up."""
    from onnx import helper, numpy_helper

    names = [one.output[0] for one in graph.readers[product.input[0]] if one.op_type == "MatMul"]
    if len(names) != 2 or not (joined := _join(graph, names)):
        return
    output, old, new = joined
    widths = np.asarray([graph.values(one.input[1]).shape[-1] for one in old])
    sizes = "widths " + " ".join(map(str, widths))
    graph.weights[sizes] = numpy_helper.from_array(widths, sizes)
    new.append(helper.make_node("Split", [output, sizes], names, f"{output}_Split", axis=-1))
    graph.replace(old, new)


def _name_norm(graph: Graph, norm: Any) -> None:
    """Write a norm as ONNX Runtime's operator: alone, or of a sum, which the operator then returns as well."""
    from onnx import helper

    values, weight = norm.input
    attributes = {one.name: helper.get_attribute_value(one) for one in norm.attribute}
    epsilon, added = attributes["epsilon"], graph.makers.get(values)
    is_sum = added is not None and added.op_type == "Add" and not any(one in graph.weights for one in added.input)
    if added is None or not is_sum or attributes["axes"] != _AXES_OF_SUMS:
        new = helper.make_node(
            "SimplifiedLayerNormalization", [values, weight], norm.output, norm.name, axis=-1, epsilon=epsilon
        )
        graph.replace([norm], [new])
        return
    new = helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [*added.input, weight],
        [norm.output[0], "", "", values],
        norm.name,
        domain=_DOMAIN,
        epsilon=epsilon,
    )
    graph.replace([added, norm], [new])
