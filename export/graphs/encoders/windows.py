"""Windows: attention of each token to those at most `window` tokens away, in blocks.

All scores of a text of 8,192 tokens are 268 MB for each head, and 1.6% of them lie within ModernBERT's window of 64. So
the text is cut into blocks as long as the window. The queries of a block need the keys of three blocks: their own and
those beside it. Blocks become rows of one MultiHeadAttention, whose bias leaves out what lies in the three blocks but
outside of the window. A text of up to three blocks is read at once under such a bias, one within the window without.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from export.graphs.encoders.distances import OUTSIDE
from export.graphs.graph import Graph

SHORTEST_BLOCK = 32
"""Below it, one matrix product for each block costs more than the scores that it leaves out."""
_PREFIX = "window_"
_PARTS = ("query", "key", "value")
# The names that these have without a maker: constants, the mask, and in the other two what the first one makes.
_SHARED = """
shared () => (bool[n] is_short) {
    shape = Shape (mask)
    rows = Slice (shape, zero, one, zero)
    tokens = Slice (shape, one, two, zero)
    before_last = Add (tokens, block_less_one)
    blocks = Div (before_last, block)
    padded_tokens = Mul (blocks, block)
    rest = Sub (padded_tokens, tokens)
    rest_and_block = Add (rest, block)
    query_pads = Concat <axis = 0> (zero, zero, zero, zero, rest, zero)
    key_pads = Concat <axis = 0> (zero, block, zero, zero, rest_and_block, zero)
    mask_pads = Concat <axis = 0> (zero, block, zero, rest_and_block)
    query_shape = Concat <axis = 0> (minus_one, block, hidden)
    joined_shape = Concat <axis = 0> (rows, padded_tokens, hidden)
    key_blocks_shape = Concat <axis = 0> (rows, minus_one, block_wide)
    three_blocks_shape = Concat <axis = 0> (minus_one, three_blocks, hidden)
    mask_blocks_shape = Concat <axis = 0> (rows, minus_one, block)
    mask_rows_shape = Concat <axis = 0> (minus_one, three_blocks)
    blocks_scalar = Squeeze (blocks)
    block_index = Range (zero_scalar, blocks_scalar, one_scalar)
    block_column = Unsqueeze (block_index, one)
    three_of_each = Add (block_column, three)
    mask_padded = Pad (mask, mask_pads)
    mask_blocks = Reshape (mask_padded, mask_blocks_shape)
    mask_threes = Gather <axis = 1> (mask_blocks, three_of_each)
    block_mask = Reshape (mask_threes, mask_rows_shape)
    is_within_window = LessOrEqual (tokens, window_and_one)
    is_short = LessOrEqual (tokens, three_blocks)
}
"""
_BIAS = """
bias_of_short () => (float[a, b, c, d] bias) {
    square = Concat <axis = 0> (tokens, tokens)
    bias = Slice (outside_of_three_blocks, corner, square, both_axes)
}
"""
_IN_BLOCKS = """
in_blocks () => (float[r, t, w] attended) {
    query_padded = Pad (query, query_pads)
    query_blocks = Reshape (query_padded, query_shape)
    key_padded = Pad (key, key_pads)
    key_blocks = Reshape (key_padded, key_blocks_shape)
    key_threes = Gather <axis = 1> (key_blocks, three_of_each)
    key_rows = Reshape (key_threes, three_blocks_shape)
    value_padded = Pad (value, key_pads)
    value_blocks = Reshape (value_padded, key_blocks_shape)
    value_threes = Gather <axis = 1> (value_blocks, three_of_each)
    value_rows = Reshape (value_threes, three_blocks_shape)
    attended_blocks = com.microsoft.MultiHeadAttention <num_heads = HEADS> (
        query_blocks, key_rows, value_rows, , block_mask, outside_of_window
    )
    attended_padded = Reshape (attended_blocks, joined_shape)
    attended = Slice (attended_padded, zero, tokens, one)
}
"""


def attend_in_blocks(
    graph: Graph, nodes: Sequence[Any], window: int, hidden: int, mask: str, whole: Callable[[Any, str, str], Any]
) -> list[Any]:
    """Replace nodes that attend within a window; returns the nodes to begin the graph with.

    `mask` is (rows, tokens) int32, queries have the width `hidden`. `whole` makes the node that reads a text at once,
    from the name of its output and that of a bias.
    """
    from onnx import helper, numpy_helper

    heads = next(one.i for one in nodes[0].attribute if one.name == "num_heads")
    names = {"mask": mask}
    for name, values in _constants(window, hidden).items():
        names[name] = f"{_PREFIX}{name}"
        graph.weights[names[name]] = numpy_helper.from_array(values, names[name])
    begun = _nodes(_SHARED, names, _PREFIX)
    names |= {name.removeprefix(_PREFIX): name for node in begun for name in node.output}
    for node in nodes:
        output = node.output[0]
        parts = dict(zip(_PARTS, node.input[:3], strict=True))
        blocks = _nodes(_IN_BLOCKS.replace("HEADS", str(heads)), names | parts, f"{output}_")
        # In the outer branch: ONNX Runtime's optimizer drops a node that only branches of branches read.
        bias = _nodes(_BIAS, names, f"{output}_")
        short = helper.make_node(
            "If",
            [names["is_within_window"]],
            [f"{output}_short"],
            then_branch=branch([whole(node, f"{output}_within", "")], f"{output}_within"),
            else_branch=branch([whole(node, f"{output}_outside", bias[-1].output[0])], f"{output}_outside"),
        )
        chosen = helper.make_node(
            "If",
            [names["is_short"]],
            [output],
            then_branch=branch([*bias, short], f"{output}_short"),
            else_branch=branch(blocks, f"{output}_blocks"),
        )
        graph.replace([node], [chosen])
    return begun


def branch(nodes: Sequence[Any], name: str) -> Any:
    """A branch of If: what the last node makes."""
    from onnx import TensorProto, helper

    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    )


def _constants(window: int, hidden: int) -> dict[str, np.ndarray]:
    block = max(window, SHORTEST_BLOCK)
    numbers: dict[str, Any] = {
        "zero": [0], "one": [1], "two": [2], "minus_one": [-1], "zero_scalar": 0, "one_scalar": 1, "three": [[0, 1, 2]],
        "block": [block], "block_less_one": [block - 1], "three_blocks": [3 * block], "hidden": [hidden],
        "block_wide": [block * hidden], "window_and_one": [window + 1], "corner": [0, 0], "both_axes": [2, 3],
    }  # fmt: skip
    apart = np.abs(np.arange(3 * block) - np.arange(3 * block)[:, None])
    outside = np.where(apart > window, np.float32(OUTSIDE), np.float32(0))[None, None]
    biases = {"outside_of_window": outside[:, :, block : 2 * block], "outside_of_three_blocks": outside}
    return {name: np.array(number, np.int64) for name, number in numbers.items()} | biases


def _nodes(text: str, names: Mapping[str, str], prefix: str) -> list[Any]:
    """The nodes of a graph in ONNX's syntax; names that are not in `names` get the prefix."""
    from onnx import parser

    nodes = list(parser.parse_graph(text).node)
    for node in nodes:
        for named in (node.input, node.output):
            named[:] = [one and names.get(one, f"{prefix}{one}") for one in named]
    return nodes
