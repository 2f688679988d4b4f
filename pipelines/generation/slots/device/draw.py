"""DrawGraph: one token for each row of logits, drawn on the device from all of them, with a number that the host drew.

The host chooses the first token at which the cumulative exponentials exceed the drawn share of their sum (see
`sampling.Sampler`). So does this graph, but another `exp` rounds otherwise: where the drawn share lies within rounding
of the end of a token, the choice is open, and the host makes it from the copied row. The graph says how near it lies.

A cumulative sum over the vocabulary would take a GPU one thread for each token that reads all before it. The graph sums
blocks first, and looks into one of them.
"""

import numpy as np

from pipelines.runtime.small_graph import Node, Port, small_graph

BLOCK = 256  # tokens
_FLOAT, _DOUBLE, _INT64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
_TO_DOUBLE, _TO_INT64 = {"to": 11}, {"to": 7}


def draw_graph() -> bytes:
    """logits (all, vocab), rows (n,), temperatures (n, 1), shares (n, 1) float64 -> tokens (n, 1), nearness (n, 1).

    `nearness` is the distance of the drawn share from the nearest end of a token, as a share of the sum. `layout` of a
    vocabulary gives the other inputs.
    """
    nodes = [
        Node("Gather", ["logits", "rows"], ["picked"], {"axis": 0}),
        Node("Div", ["picked", "temperatures"], ["scores"]),
        Node("ReduceMax", ["scores"], ["largest"], {"axes": [1], "keepdims": 1}),
        Node("Sub", ["scores", "largest"], ["shifted"]),
        Node("Exp", ["shifted"], ["single"]),
        Node("Cast", ["single"], ["weights"], _TO_DOUBLE),
        Node("Pad", ["weights", "pads"], ["padded"]),
        Node("Reshape", ["padded", "shape"], ["blocks"]),  # (n, blocks, BLOCK)
        # The block in which the point lies.
        Node("ReduceSum", ["blocks", "within"], ["sums"], {"keepdims": 0}),
        Node("CumSum", ["sums", "across"], ["ends"]),
        Node("ReduceMax", ["ends"], ["total"], {"axes": [1], "keepdims": 1}),
        Node("Mul", ["shares", "total"], ["point"]),
        Node("LessOrEqual", ["ends", "point"], ["passed"]),
        Node("Cast", ["passed"], ["passed_int"], _TO_INT64),
        Node("ReduceSum", ["passed_int", "across"], ["counted"], {"keepdims": 1}),
        Node("Min", ["counted", "last_block"], ["block"]),  # (n, 1)
        # The token in this block.
        Node("GatherND", ["blocks", "block"], ["inside"], {"batch_dims": 1}),  # (n, BLOCK)
        Node("CumSum", ["inside", "across"], ["inner_ends"]),
        Node("GatherElements", ["ends", "block"], ["block_end"], {"axis": 1}),
        Node("GatherElements", ["sums", "block"], ["block_sum"], {"axis": 1}),
        Node("Sub", ["block_end", "block_sum"], ["begin"]),
        Node("Add", ["inner_ends", "begin"], ["token_ends"]),
        Node("LessOrEqual", ["token_ends", "point"], ["passed_tokens"]),
        Node("Cast", ["passed_tokens"], ["passed_tokens_int"], _TO_INT64),
        Node("ReduceSum", ["passed_tokens_int", "across"], ["place"], {"keepdims": 1}),
        Node("Mul", ["block", "block_size"], ["block_start"]),
        Node("Add", ["block_start", "place"], ["tokens"]),
        # How near the point lies to the end of a token, or to the begin of the block.
        Node("Concat", ["begin", "token_ends"], ["borders"], {"axis": 1}),
        Node("Sub", ["borders", "point"], ["apart"]),
        Node("Abs", ["apart"], ["distances"]),
        Node("ReduceMin", ["distances"], ["nearest"], {"axes": [1], "keepdims": 1}),
        Node("Div", ["nearest", "total"], ["nearness"]),
    ]
    inputs = [Port("logits", _FLOAT, 2), Port("rows", _INT64, 1), Port("temperatures", _FLOAT, 2)]
    inputs += [Port("shares", _DOUBLE, 2), Port("pads", _INT64, 1), Port("shape", _INT64, 1)]
    inputs += [Port("within", _INT64, 1), Port("across", _INT64, 1), Port("last_block", _INT64, 1)]
    inputs += [Port("block_size", _INT64, 1)]
    return small_graph(nodes, inputs, [Port("tokens", _INT64, 2), Port("nearness", _DOUBLE, 2)])


def layout(vocab: int) -> dict[str, np.ndarray]:
    """The inputs of the graph that depend on the size of the vocabulary alone."""
    blocks = -(-vocab // BLOCK)
    given = {"pads": [0, 0, 0, blocks * BLOCK - vocab], "shape": [0, blocks, BLOCK], "within": [2], "across": [1]}
    given |= {"last_block": [blocks - 1], "block_size": [BLOCK]}
    return {name: np.asarray(value, np.int64) for name, value in given.items()}
