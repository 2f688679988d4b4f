"""Attention: the many nodes that an exporter writes for it become one operator, for encoders on a CPU.

Without a mask, ONNX Runtime's MultiHeadAttention computes attention block by block and never holds the scores of all
pairs of tokens (FlashAttention, Dao et al. 2022, https://arxiv.org/abs/2205.14135). A batch whose rows have one length
needs no mask, so the graph looks at its mask once and then decides:

    If(no padding) then MultiHeadAttention(query, key, value) else MultiHeadAttention(query, key, value, mask)

Attention of another form does not match the pattern, or gives other outputs in the comparison, and keeps its nodes,
unless it was traced as an operator (traced_attention.py).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.graphs.encoders.traced_attention import OPERATOR
from export.graphs.encoders.windows import attend_in_blocks, branch
from export.graphs.graph import Graph, save

_SPLIT = [0, 2, 1, 3]  # (rows, tokens, heads, width) <-> (rows, heads, tokens, width)
_SPLIT_TRANSPOSED = [0, 2, 3, 1]
_TRANSPOSED = [0, 1, 3, 2]
_SCALED = ("Mul", "Div", "Cast")
_MASKED = ("Add", "Where", *_SCALED)
_OPTIONS = ("num_heads",)
_UNPADDED, _MASK = "attention_is_unpadded", "attention_mask_int32"
_LONGEST = 200  # tokens in a comparison: more than three windows of ModernBERT
TOLERANCE = 1e-4
"""The largest difference from the outputs of the graph before, per unit of their largest value."""


def fuse_attention(graph: Path, heads: int) -> int:
    """Rewrite an encoder's graph in place; returns how many attentions were fused.

    Returns 0 and leaves the file alone where no attention matches, or where the outputs for padded or unpadded batches
    would change.
    """
    import onnx

    model = onnx.load(graph)
    if "attention_mask" not in [one.name for one in model.graph.input]:
        return 0
    found = _fuse(Graph(model), heads)
    if found:
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        rewritten = graph.with_name(f"fused_{graph.name}")
        save(model, rewritten)
        if not _agree(graph, rewritten):
            found = 0
        else:
            _remove(graph)
            save(model, graph)  # not renamed: a large graph names the file that holds its weights
        _remove(rewritten)
    return found


def _fuse(graph: Graph, heads: int) -> int:
    found = 0
    for softmax in graph.of_type("Softmax"):
        matched = match(graph, softmax)
        if matched is not None:
            join, projections = matched
            graph.replace([join], [_attention(join, projections, heads)])
            found += 1
    if found:
        graph.begin_with(_mask_nodes())
        graph.save()
    return found


def finish_attention(graph: Path, window: int | None, hidden: int) -> None:
    """Rewrite, in place, a graph whose attention was traced as operators, so that padding costs where there is some.

    With `window`, operators with a bias attend within it, in blocks; their queries have the width `hidden`.
    """
    import onnx

    model = onnx.load(graph)
    rewritten = Graph(model)
    nodes = list(rewritten.of_type(OPERATOR))
    windowed = [] if window is None else [node for node in nodes if _bias(node)]
    for node in nodes:
        if not any(node is one for one in windowed):
            rewritten.replace([node], [_either(node, node.output[0], _bias(node))])
    begun = _mask_nodes()
    if windowed and window is not None:
        begun += attend_in_blocks(rewritten, windowed, window, hidden, _MASK, _either)
    rewritten.begin_with(begun)
    rewritten.save()
    save(model, graph)


def _bias(operator: Any) -> str:
    """The name of the bias that an operator adds to its scores; "" for none."""
    return str(operator.input[5]) if len(operator.input) > 5 else ""


def fault_of_attention(graph: Path, model: Any) -> str | None:
    """What is wrong with an encoder's graph: its outputs for texts of many lengths, with and without padding, are held
    against those of `model`; None where they are the same.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(graph))
    longest = min(_LONGEST, model.config.max_position_embeddings // 2)
    for lengths in ((longest, longest // 3, 1), (longest, longest), (9, 4), (9,), (1,)):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.random.default_rng(0).integers(3, model.config.vocab_size, mask.shape)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds = {one.name: given[one.name] for one in session.get_inputs()}
        ours = session.run(None, feeds)
        with torch.no_grad():
            theirs = model(**{name: torch.from_numpy(one) for name, one in feeds.items()})
        for one, mine in zip(session.get_outputs(), ours, strict=True):
            expected = theirs[one.name].numpy()
            of_tokens = mask.astype(bool) if expected.shape[:2] == mask.shape else slice(None)
            difference = float(np.abs(mine - expected)[of_tokens].max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(expected[of_tokens]).max())):
                return f"it differs from PyTorch by {difference:.2g} in rows of {lengths} tokens"
    return None


def _mask_nodes() -> list[Any]:
    """Nodes from the mask to the one that the operator takes, and to whether nothing is padded."""
    from onnx import TensorProto, helper

    least = f"{_UNPADDED}_least"
    return [
        helper.make_node("ReduceMin", ["attention_mask"], [least], least, keepdims=0),
        helper.make_node("Cast", [least], [_UNPADDED], _UNPADDED, to=TensorProto.BOOL),
        helper.make_node("Cast", ["attention_mask"], [_MASK], _MASK, to=TensorProto.INT32),
    ]


def match(graph: Graph, softmax: Any) -> tuple[Any, list[str]] | None:
    """The node that joins the heads, and the names of query, key and value; None where this is no attention."""
    scores = graph.behind(softmax.input[0], "MatMul", _MASKED)
    context = graph.only_reader(softmax, "MatMul")
    split = context and graph.only_reader(context, "Transpose")
    join = split and graph.only_reader(split, "Reshape")
    if scores is None or join is None or _permutation(split) != _SPLIT:
        return None
    projections = [
        _projection(graph, scores.input[0], [_SPLIT]),
        _projection(graph, scores.input[1], [_SPLIT_TRANSPOSED], [_SPLIT, _TRANSPOSED]),
        _projection(graph, context.input[1], [_SPLIT]),
    ]
    found = [name for name in projections if name is not None]
    return (join, found) if len(found) == len(projections) else None


def _projection(graph: Graph, name: str, *permutations: list[list[int]]) -> str | None:
    """The tensor that becomes `name` in a split into heads: Reshape, then one of the orders of Transpose; or None."""
    transpose = graph.behind(name, "Transpose", _SCALED)
    seen: list[list[int]] = []
    while transpose is not None and transpose.op_type == "Transpose":
        seen.insert(0, _permutation(transpose))
        transpose = graph.makers.get(transpose.input[0])
    splits = transpose is not None and transpose.op_type == "Reshape" and seen in permutations
    return str(transpose.input[0]) if splits else None


def _attention(join: Any, projections: list[str], heads: int) -> Any:
    """The node from query, key and value, each (rows, tokens, heads * width), to the output of `join`."""
    from onnx import helper

    operator = helper.make_node(OPERATOR, projections, join.output, join.name, domain="com.microsoft", num_heads=heads)
    return _either(operator, join.output[0])


def _either(operator: Any, output: str, bias: str = "") -> Any:
    """The node that attends as `operator` does, under the mask of the batch if it has padding, and makes `output`."""
    from onnx import helper

    options = {one.name: helper.get_attribute_value(one) for one in operator.attribute if one.name in _OPTIONS}
    branches = {}
    for name, mask in (("then_branch", ""), ("else_branch", _MASK)):
        inputs, made = [*operator.input[:3], "", mask, bias], f"{output}_{name}"
        while not inputs[-1]:
            inputs.pop()
        node = helper.make_node(OPERATOR, inputs, [made], made, domain="com.microsoft", **options)
        branches[name] = branch([node], made)
    return helper.make_node("If", [_UNPADDED], [output], f"{output}_attention", **branches)


def _permutation(transpose: Any) -> list[int]:
    return next((list(one.ints) for one in transpose.attribute if one.name == "perm"), [])


def _agree(before: Path, after: Path) -> bool:
    """Whether both graphs make the same of a batch without and one with padding."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a fused graph that fails is dropped without a message
    try:
        sessions = [onnxruntime.InferenceSession(str(graph), options) for graph in (before, after)]
        answers = [[session.run(None, feeds) for session in sessions] for feeds in _batches(sessions[0])]
    except Exception:  # onnxruntime raises a type of its own per failure, all of them plain Exceptions
        return False
    return all(
        np.abs(one - other).max() <= TOLERANCE * max(1.0, float(np.abs(one).max()))
        for plain, fused in answers
        for one, other in zip(plain, fused, strict=True)
    )


def _batches(session: Any) -> Iterator[Mapping[str, np.ndarray]]:
    """A batch without padding, and one with."""
    names = [one.name for one in session.get_inputs()]
    ids = np.arange(3, 27, dtype=np.int64).reshape(3, 8)
    for length in (8, 5):
        mask = np.ones_like(ids)
        mask[0, length:] = 0
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        yield {name: feeds[name] for name in names}


def _remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
