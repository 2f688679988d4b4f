"""Quantize: weights in int8 or int4, or everything in fp16 for CUDA.

onnxruntime's `quantize_dynamic` makes the same int8 graph, but loops over channels in Python: minutes for a small
language model, where whole matrices take seconds. It quantizes embedding tables with one scale, or not at all.
"""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np

from export.graphs.graph import Graphs, name_weights_directly, reads, save
from export.graphs.slot_graph import is_slot_graph
from export.quantization.activations import OneScale, TokenScales
from export.quantization.outliers import digest

INT4_BLOCK_SIZE = 32
INT4_ACCURACY_LEVEL = 4  # on a CPU: activations in int8, with a scale for each token and block
_INT4_SHARES = (1.0, 1.08)  # of the scale at which the largest value of a block just fits
_INT4_ZERO = 8  # the code that MatMulNBits reads as zero where it has no zero points


def to_int8(graphs: Graphs, keep: Set[str] = frozenset()) -> None:
    """Rewrite every graph in place: weights become int8 (symmetric), activations are quantized dynamically.

    Matrices have one scale per output channel, embedding tables one per row. Products of two activations (attention)
    stay in fp32: quantizing both sides costs accuracy and time. So do the matrices in `keep` (see outliers).
    In a slot graph each token has its own scale: with one scale per batch, an answer would depend on its neighbours.
    """
    import onnx

    for graph in graphs.values():
        model = onnx.load(graph)
        weights = _Weights(model, keep)
        _rewrite(model, weights, TokenScales(weights.new) if is_slot_graph(model) else OneScale())
        save(model, graph)


def to_int4(graphs: Graphs, device: str = "cpu") -> None:
    """Rewrite slot graphs in place: matrices become int4, with a scale per INT4_BLOCK_SIZE inputs of a channel.

    A step of one row takes as long as reading the weights, and int4 halves the bytes of int8. Embedding tables, which
    are read row by row, become int8. On CPUs MatMulNBits quantizes activations to int8, each token by itself. Graphs
    for CUDA need `to_fp16` afterwards. The layout: onnxruntime's docs/ContribOperators.md.
    """
    import onnx

    for graph in graphs.values():
        model = onnx.load(graph)
        _rewrite(model, _Weights(model), _accuracy_level(device))
        if all(one.domain != "com.microsoft" for one in model.opset_import):
            model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        save(model, graph)


def to_fp16(graphs: Graphs) -> None:
    """Rewrite every graph in place: weights and arithmetic become fp16, inputs and outputs keep their types.

    The KV cache of a slot graph becomes fp16 as well: a cast would copy all of it at every step.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    for graph in graphs.values():
        model = onnx.load(graph)
        angles = _angles(model)
        halved = convert_float_to_float16(
            model,
            keep_io_types=["logits"] if is_slot_graph(model) else True,
            disable_shape_infer=True,  # it fails on onnxruntime's own operators, which fusions put in
            node_block_list=[*_between_casts(model, "Log"), *angles],
        )
        OnnxModel(halved).topological_sort()  # the casts of its inputs come last, and a branch must be in order
        save(halved, graph)


def quantization(precision: str, device: str) -> dict[str, int]:
    """`quantization` of a manifest: the parameters of a precision."""
    if precision != "int4":
        return {}
    return {"block_size": INT4_BLOCK_SIZE, "accuracy_level": _accuracy_level(device)}


def _accuracy_level(device: str) -> int:
    """MatMulNBits'. 0 leaves activations as they are: fp16, where CUDA's kernels read nothing else."""
    return INT4_ACCURACY_LEVEL if device == "cpu" else 0


def has_exact_int8() -> bool:
    """Whether this CPU multiplies u8 by s8 without saturation. x86 without VNNI does not: it needs 7-bit weights."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "vnni" in flags or "flags" not in flags  # ARM lists Features, and its dot products are exact


def quantize_rows(values: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (rows, width) -> scales float32 (rows, 1), and int8 (rows, width) from -limit to limit."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(limit), np.float32(1))
    return scale, np.clip(np.rint(values / scale), -limit, limit).astype(np.int8)


def quantize_blocks(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (rows, width) -> uint8 (rows, blocks, size / 2), two values a byte, and scales float32 (rows, blocks).

    Code 0 stands for -8 times the scale, code 15 for 7 times. The value furthest from zero gets code 0: its sign is in
    the scale. Of several scales, a block gets the one with the smallest squared error. None of them clips the value
    furthest from zero: clipping costs more perplexity than its squared error suggests.
    """
    rows, width = values.shape
    n_blocks = -(-width // size)
    blocks = np.pad(values, ((0, 0), (0, n_blocks * size - width))).reshape(rows, n_blocks, size)
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    least = np.where(peaks != 0, peaks / np.float32(-_INT4_ZERO), np.float32(1))
    scale, rounded = least, np.zeros_like(blocks)
    smallest = np.full(least.shape, np.inf, np.float32)
    for share in _INT4_SHARES:
        tried = least * np.float32(share)
        steps = np.clip(np.rint(blocks / tried), -_INT4_ZERO, _INT4_ZERO - 1)
        error = np.square(steps * tried - blocks).sum(-1, keepdims=True)
        better = error < smallest
        scale, smallest = np.where(better, tried, scale), np.where(better, error, smallest)
        rounded = np.where(better, steps, rounded)
    codes = (rounded + _INT4_ZERO).astype(np.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scale[..., 0]


class _Weights:
    """The fp32 matrices of a graph, and their quantized tensors."""

    def __init__(self, model: Any, keep: Set[str] = frozenset()) -> None:
        name_weights_directly(model)
        self.graph, self.keep = model.graph, keep
        self.limit = 127 if has_exact_int8() else 64
        self.tensors = {one.name: one for one in model.graph.initializer if len(one.dims) == 2 and one.data_type == 1}
        self.readers: dict[str, int] = {}
        for node in model.graph.node:
            for name in reads(node):
                self.readers[name] = self.readers.get(name, 0) + 1
        self.new: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def kept(self, name: str, *, transposed: bool) -> bool:
        """Whether a matrix stays in fp32."""
        values = self._values(name)
        return bool(self.keep) and digest(values if transposed else values.T) in self.keep

    def matrix(self, name: str, *, transposed: bool) -> tuple[str, str, str]:
        """Names of int8 (in, out), scales (out,) and zero points (out,) of a matrix; `transposed`: it is (out, in)."""
        new = (f"{name}_quantized", f"{name}_scale", f"{name}_zero_point")
        values = self._take(name)
        if new[0] not in self.new:
            scale, quantized = quantize_rows(values if transposed else values.T, self.limit)
            self.new |= zip(
                new, (np.ascontiguousarray(quantized.T), scale[:, 0], np.zeros(len(scale), np.int8)), strict=True
            )
        return new

    def blocks(self, name: str, *, transposed: bool) -> tuple[str, str, tuple[int, int]]:
        """Names of int4 (out, blocks, bytes) and of its scales (out, blocks) of a matrix; and (in, out)."""
        new = (f"{name}_blocks", f"{name}_block_scales")
        values = self._take(name)
        values = values if transposed else values.T
        if new[0] not in self.new:
            self.new |= zip(new, quantize_blocks(values, INT4_BLOCK_SIZE), strict=True)
        return *new, (values.shape[1], values.shape[0])

    def table(self, name: str) -> tuple[str, str]:
        """Names of int8 (rows, width) and of its scales (rows, 1)."""
        new = (f"{name}_rows_quantized", f"{name}_rows_scale")
        values = self._take(name)
        if new[0] not in self.new:
            scale, quantized = quantize_rows(values, self.limit)
            self.new |= {new[0]: quantized, new[1]: scale}
        return new

    def save(self) -> None:
        """Put the new tensors into the graph, and drop those that nothing reads any more."""
        from onnx import numpy_helper

        kept = [one for one in self.graph.initializer if self.readers.get(one.name, 0) > 0]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        self.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.new.items())

    def _take(self, name: str) -> np.ndarray:
        self.readers[name] -= 1
        return self._values(name)

    def _values(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        values: np.ndarray = numpy_helper.to_array(self.tensors[name])
        return values


def _rewrite(model: Any, weights: _Weights, activations: OneScale | int) -> None:
    """Put products and tables of quantized weights in place of those of floats.

    `activations` says how those become int8; an int makes int4 products of that accuracy level.
    """
    nodes = [new for node in model.graph.node for new in _rewritten(node, weights, activations)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    weights.save()


def _rewritten(node: Any, weights: _Weights, activations: OneScale | int) -> Iterator[Any]:
    """The nodes that stand for `node`."""
    from onnx import helper

    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    transposed = bool(attributes.get("transB", 0))
    is_product = node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    if is_product and weights.kept(node.input[1], transposed=transposed):
        yield node
    elif is_product and node.op_type == "MatMul":
        yield from _matmul(node, node.output[0], weights, activations, transposed=False)
    elif (
        is_product and attributes.get("transA", 0) == 0 and attributes.get("alpha", 1.0) == attributes.get("beta", 1.0)
    ):
        product = f"{node.output[0]}_product" if len(node.input) > 2 else node.output[0]
        yield from _matmul(node, product, weights, activations, transposed=transposed)
        if len(node.input) > 2:
            yield helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}_bias")
    elif node.op_type == "Gather" and node.input[0] in weights and attributes.get("axis", 0) == 0:
        values, scales = weights.table(node.input[0])
        output = node.output[0]
        # Not `_quantized` and `_scale`, as the activations of a product are called: one may read the rows as they are.
        yield helper.make_node("Gather", [values, node.input[1]], [f"{output}_rows"], f"{node.name}_rows")
        yield helper.make_node("Gather", [scales, node.input[1]], [f"{output}_row_scales"], f"{node.name}_row_scales")
        yield helper.make_node("Cast", [f"{output}_rows"], [f"{output}_cast"], f"{node.name}_cast", to=1)
        yield helper.make_node("Mul", [f"{output}_cast", f"{output}_row_scales"], [output], f"{node.name}_mul")
    else:
        yield node


def _matmul(
    node: Any, output: str, weights: _Weights, activations: OneScale | int, *, transposed: bool
) -> Iterator[Any]:
    """A product of integers, scaled back to float."""
    from onnx import helper

    activation, name = node.input[0], node.name
    if isinstance(activations, int):
        blocks, scales, (width, channels) = weights.blocks(node.input[1], transposed=transposed)
        yield helper.make_node(
            "MatMulNBits",
            [activation, blocks, scales],
            [output],
            f"{name}_quant",
            domain="com.microsoft",
            K=width,
            N=channels,
            bits=4,
            block_size=INT4_BLOCK_SIZE,
            accuracy_level=activations,
        )
        return
    yield from activations.product(activation, *weights.matrix(node.input[1], transposed=transposed), output)


def _between_casts(model: Any, op_type: str) -> list[str]:
    """The names of the nodes from a Cast through `op_type` to a Cast, which keep fp32.

    T5 and DeBERTa compute the bucket of a relative position from a logarithm: in fp16 some buckets are wrong.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, Any] = {}
    waiting = [node for node in model.graph.node if node.op_type == op_type]
    while waiting:
        node = waiting.pop()
        if node.name in found:
            continue
        found[node.name] = node
        if node.op_type == "Cast":
            continue
        waiting += [makers[name] for name in node.input if name in makers]
        waiting += [reader for name in node.output for reader in readers.get(name, [])]
    return list(found)


def _angles(model: Any) -> list[str]:
    """The names of the nodes from the Cast of a position to its sine and cosine, which keep fp32.

    fp16 has no odd number above 2,048, and steps of half a radian from 512 on. The graph gets a Cast behind each sine
    and cosine, of which the conversion makes one to fp16.
    """
    from onnx import helper

    makers = {name: node for node in model.graph.node for name in node.output}
    ends = [node for node in model.graph.node if node.op_type in ("Cos", "Sin")]
    found: dict[str, Any] = {}
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found[node.name] = node
            if node.op_type != "Cast":
                waiting += [makers[name] for name in node.input if name in makers]
    halves = {node.output[0]: f"{node.output[0]}_half" for node in ends}
    for node in model.graph.node:
        node.input[:] = [halves.get(name, name) for name in node.input]
    for name, half in halves.items():
        place = list(model.graph.node).index(makers[name]) + 1
        model.graph.node.insert(place, helper.make_node("Cast", [name], [half], half, to=1))
    return list(found)
