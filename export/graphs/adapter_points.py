"""Adapter points: where a slot graph takes LoRA adapters, noted in the metadata of its file.

Fusions have joined some layers of the model (query, key and value; gate and up) and named nothing after the layers.
Serving adds the nodes of adapters to a graph when it loads it (pipelines.generation.adapters), and needs to know which
tensors a layer of the model reads and makes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from export.graphs.graph import Graph
from export.quantization.outliers import digest
from pipelines.generation.adapters.point import METADATA, Part, Point, as_json

_PRODUCTS = ("MatMul", "Gemm")
_Layers = dict[tuple[int, str], tuple[Part, int]]
"""Linear layers, each with the axes of what it reads, by the width of that and the `digest` of its weight."""


def note_points(onnx_model: Any, model: Any) -> None:
    """Note the points of a fused slot graph, fp32, made from a PyTorch model."""
    graph, layers = Graph(onnx_model), _layers(model)
    points = [point for node in graph.nodes if (point := _point(graph, node, layers)) is not None]
    onnx_model.metadata_props.add(key=METADATA, value=as_json(points))


def _point(graph: Graph, node: Any, layers: _Layers) -> Point | None:
    """The point at a product with the weights of layers; None for any other node."""
    from onnx import helper

    if node.op_type not in _PRODUCTS or node.input[1] not in graph.weights or len(node.output) != 1:
        return None
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    weight = graph.values(node.input[1])
    matrix = weight if attributes.get("transB") else weight.T  # (out, in)
    found = list(_parts(matrix, layers)) if matrix.ndim == 2 else []
    if not found:
        return None
    axes = 2 if node.op_type == "Gemm" else found[0][1]
    return Point(node.input[0], _biased(graph, node), matrix.shape[1], axes, tuple(part for part, _ in found))


def _parts(matrix: np.ndarray, layers: _Layers) -> Iterator[tuple[Part, int]]:
    """The layers whose weights are side by side in (out, in), all of them; none where one is unknown."""
    found, start = [], 0
    while start < len(matrix):
        layer = layers.get((matrix.shape[1], digest(matrix[start:])))
        if layer is None:
            return
        found.append(layer)
        start += layer[0].width
    yield from found if start == len(matrix) else ()


def _biased(graph: Graph, node: Any) -> str:
    """What a layer makes: the product, or its sum with a bias. PEFT adds an adapter's part after the bias."""
    output: str = node.output[0]
    added = graph.only_reader(node, "Add")
    if added is not None and any(one in graph.weights for one in added.input):
        output = added.output[0]
    return output


def _layers(model: Any) -> _Layers:
    """The linear layers that read all tokens, as (rows, tokens, width) or (rows x tokens, width).

    Experts read some of the tokens, and the output layer may read some: an adapter's rows would be others. Layers with
    equal weights cannot be told apart in a graph.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    rows, tokens = 2, 7
    names = {module: name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    names.pop(model.get_output_embeddings(), None)
    read: dict[Any, list[tuple[int, ...]]] = {}
    hooks = [
        module.register_forward_hook(lambda layer, given, _made: read.setdefault(layer, []).append(given[0].shape))
        for module in names
    ]
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(rows * tokens).reshape(rows, tokens) % model.config.vocab_size)
    finally:
        for hook in hooks:
            hook.remove()
    found: _Layers = {}
    twice = set()
    for module, shapes in read.items():
        weight = module.weight.detach().numpy()
        weight = weight.T if isinstance(module, Conv1D) else weight
        key = (weight.shape[1], digest(weight))
        every = [(rows, tokens, weight.shape[1]), (rows * tokens, weight.shape[1])]
        if len(shapes) == 1 and tuple(shapes[0]) in every:
            twice |= {key} & found.keys()
            found[key] = Part(names[module], weight.shape[0]), len(shapes[0])
    return {key: layer for key, layer in found.items() if key not in twice}
