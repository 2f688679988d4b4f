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

_AXES = {"MatMul": 3, "Gemm": 2}
"""The axes of what such a node makes of all tokens: (rows, tokens, width), or (rows x tokens, width)."""


def note_points(onnx_model: Any, model: Any) -> None:
    """Note the points of a fused slot graph, fp32, made from a PyTorch model."""
    graph, layers = Graph(onnx_model), _layers(model)
    points = [point for node in graph.nodes if (point := _point(graph, node, layers)) is not None]
    onnx_model.metadata_props.add(key=METADATA, value=as_json(points))


def _point(graph: Graph, node: Any, layers: "dict[tuple[int, str], Part]") -> Point | None:
    """The point at a product with the weights of layers; None for any other node."""
    from onnx import helper

    if node.op_type not in _AXES or node.input[1] not in graph.weights or len(node.output) != 1:
        return None
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    weight = graph.values(node.input[1])
    matrix = weight if attributes.get("transB") else weight.T  # (out, in)
    parts = list(_parts(matrix, layers)) if matrix.ndim == 2 else []
    if not parts:
        return None
    return Point(node.input[0], _biased(graph, node), matrix.shape[1], _AXES[node.op_type], tuple(parts))


def _parts(matrix: np.ndarray, layers: "dict[tuple[int, str], Part]") -> Iterator[Part]:
    """The layers whose weights are side by side in (out, in), all of them; none where one is unknown."""
    found, start = [], 0
    while start < len(matrix):
        part = layers.get((matrix.shape[1], digest(matrix[start:])))
        if part is None:
            return
        found.append(part)
        start += part.width
    yield from found if start == len(matrix) else ()


def _biased(graph: Graph, node: Any) -> str:
    """What a layer makes: the product, or its sum with a bias. PEFT adds an adapter's part after the bias."""
    output: str = node.output[0]
    added = graph.only_reader(node, "Add")
    if added is not None and any(one in graph.weights for one in added.input):
        output = added.output[0]
    return output


def _layers(model: Any) -> "dict[tuple[int, str], Part]":
    """The linear layers that read all tokens, by the width of their input and the `digest` of their weight.

    Experts read some of the tokens, and the output layer may read some: an adapter's rows would be others. Layers with
    equal weights cannot be told apart in a graph.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    rows, tokens = 2, 3
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
    found: dict[tuple[int, str], Part] = {}
    twice = set()
    for module, shapes in read.items():
        weight = module.weight.detach().numpy()
        weight = weight.T if isinstance(module, Conv1D) else weight
        key = (weight.shape[1], digest(weight))
        if [tuple(shape) for shape in shapes] == [(rows, tokens, weight.shape[1])]:
            twice |= {key} & found.keys()
            found[key] = Part(names[module], weight.shape[0])
    return {key: part for key, part in found.items() if key not in twice}
