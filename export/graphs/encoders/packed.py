"""Packed rows: an encoder for CUDA that reads the tokens of all rows one after the other, without padding.

Every operator but attention treats each token by itself, so it needs no rows. Attention is ONNX Runtime's
PackedMultiHeadAttention, which finds the rows by their cumulative lengths and runs FlashAttention on them (on compute
capability 8.0 and above; below it, CUTLASS's memory-efficient attention). The graph's feeds are packed already. ONNX
Runtime's RemovePadding would pack padded feeds on the device, but it waits for the number of tokens to reach the host:
the copies and kernels of a run would no longer overlap, and no CUDA graph could hold it.

input_ids                     (tokens,)        int32    those of the first row, of the second, ...
position_ids                  (tokens,)        int32    from 0 in each row
token_type_ids                (tokens,)        int32    where the model has types
cumulative_sequence_length    (rows + 1,)      int32    0, and the tokens up to the end of each row
batch_shape                   (2,)             int64    rows, and a bound of the longest row; read on the host
-> logits ...                 (rows, labels) of a head that reads a row's first token, else (tokens, ...)
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.frameworks import exclusive
from export.graphs.encoders.attention import match
from export.graphs.graph import Graph, name_weights_directly, save
from export.graphs.trace import trace

OPERATOR = "PackedMultiHeadAttention"
_HEAD_MULTIPLE = 8  # the fused kernels take heads of a multiple of this width
_BODIES = ("encoder", "transformer")  # the layers, by their name in the base model
_FIRST_TOKEN_HEAD = "ForSequenceClassification"
_OUTPUTS = {
    _FIRST_TOKEN_HEAD: ("logits",),
    "ForTokenClassification": ("logits",),
    "ForQuestionAnswering": ("start_logits", "end_logits"),
}
"""The outputs of a model by the end of its class's name."""
_ENDS, _SHAPE, _OFFSET = "cumulative_sequence_length", "batch_shape", "token_offset"


def convert_to_packed(model: Any, graph: Path) -> bool:
    """Write the packed fp32 graph of an encoder; False, and no file, where its head or attention has another form."""
    import torch

    heads = getattr(model.config, "num_attention_heads", None)
    width = getattr(model.config, "hidden_size", 0)
    outputs = next((found for head, found in _OUTPUTS.items() if type(model).__name__.endswith(head)), None)
    body = next((one for name, one in model.base_model.named_children() if name in _BODIES), None)
    if outputs is None or body is None or not _positions(model):
        return False
    if not heads or width % heads or (width // heads) % _HEAD_MULTIPLE:
        return False
    traced = _traced(model, outputs)
    types = getattr(model.config, "type_vocab_size", 0) > 1
    tokens = torch.zeros(7, dtype=torch.int32)
    example = {
        "input_ids": tokens + 1,
        "position_ids": torch.tensor([0, 1, 2, 3, 0, 1, 2], dtype=torch.int32),
        **({"token_type_ids": tokens} if types else {}),
        _ENDS: torch.tensor([0, 4, 7], dtype=torch.int32),
    }
    axes = {name: {0: "rows_and_one" if name == _ENDS else "tokens"} for name in example}
    with _first_tokens(model, body, traced):
        trace(traced, list(example.values()), graph, axes, {name: {0: traced.dimension} for name in outputs})
    packed = _fused(graph)
    name_weights_directly(packed)
    if _fuse(Graph(packed), heads) != model.config.num_hidden_layers:
        graph.unlink()
        return False
    save(packed, graph)
    return True


def _positions(model: Any) -> bool:
    """Whether positions can be given: as an argument, or in the buffer that the embeddings slice them from."""
    return "position_ids" in inspect.signature(model.forward).parameters or hasattr(
        getattr(model.base_model, "embeddings", None), "position_ids"
    )


class _Whole:
    """Positions in place of a buffer of them: whatever part a model takes, it gets all."""

    def __init__(self, positions: Any) -> None:
        self._positions = positions

    def __getitem__(self, _part: Any) -> Any:
        return self._positions


def _traced(model: Any, outputs: Sequence[str]) -> Any:
    """The module to trace: all tokens are one row of it, with the positions of their own rows."""
    import torch

    per_row = type(model).__name__.endswith(_FIRST_TOKEN_HEAD)
    arguments = inspect.signature(model.forward).parameters
    # RoBERTa counts positions from the id of padding on.
    table = getattr(model.base_model.embeddings, "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    first_position = 0 if padding is None else padding + 1

    class Packed(torch.nn.Module):
        dimension = "rows" if per_row else "tokens"

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.cumulative: Any = None

        def forward(self, input_ids: Any, position_ids: Any, *rest: Any) -> tuple[Any, ...]:
            *types, self.cumulative = rest
            positions = (position_ids + first_position)[None]
            given = {"input_ids": input_ids[None]}
            if "token_type_ids" in arguments:  # given always: the model's own zeros have a shape that the host computes
                given["token_type_ids"] = types[0][None] if types else input_ids[None] * 0
            if "position_ids" in arguments:
                given["position_ids"] = positions
            else:
                model.base_model.embeddings.position_ids = _Whole(positions)
            found = self.model(**given)
            return tuple(found[name] if per_row else found[name][0] for name in outputs)

        def first_tokens(self, hidden: Any) -> Any:
            """(1, tokens, width) -> (rows, 1, width)."""
            return hidden[0].index_select(0, self.cumulative[:-1])[:, None] if per_row else hidden

    return Packed().eval()


@contextmanager
def _first_tokens(model: Any, body: Any, traced: Any) -> Iterator[None]:
    """Let a head that reads the first token of each row find them; afterwards the model is as it was."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (traced.first_tokens(output[0]), *output[1:])
        output["last_hidden_state"] = traced.first_tokens(output["last_hidden_state"])
        return output

    embeddings = model.base_model.embeddings
    with exclusive:
        handle = body.register_forward_hook(hook)
        kept = embeddings._buffers.pop("position_ids", None)
        try:
            yield
        finally:
            handle.remove()
            embeddings.__dict__.pop("position_ids", None)
            if kept is not None:
                embeddings.register_buffer("position_ids", kept, persistent=False)


def _fused(graph: Path) -> Any:
    """The traced model with fewer nodes: Gelu with its bias, norms of sums with theirs.

    Before the packed operator comes in: ONNX Runtime's fusions need shapes, and infer none behind it.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_attention = options.enable_embed_layer_norm = False
    return optimize_model(str(graph), "bert", optimization_options=options, opt_level=0).model


def _fuse(graph: Graph, heads: int) -> int:
    """Put the packed operator in place of every attention; returns how many there were."""
    from onnx import TensorProto, helper

    found = 0
    for softmax in graph.of_type("Softmax"):
        matched = match(graph, softmax)
        projections = matched and [_projection(graph, name) for name in matched[1]]
        if not matched or not projections or None in projections:
            return 0
        graph.replace([matched[0]], _attention(graph, matched[0], projections, heads))
        found += 1
    if not found:
        return 0
    graph.weights["no_offset"] = _tensor("no_offset", np.zeros((1, 1), np.int32))
    graph.begin_with([helper.make_node("Expand", ["no_offset", _SHAPE], [_OFFSET], _OFFSET)])
    given = graph.model.graph.input
    if all(one.name != _ENDS for one in given):  # only a head that reads first tokens has traced it
        given.append(helper.make_tensor_value_info(_ENDS, TensorProto.INT32, ["rows_and_one"]))
    given.append(helper.make_tensor_value_info(_SHAPE, TensorProto.INT64, [2]))
    graph.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    graph.save()
    return found


def _projection(graph: Graph, name: str) -> tuple[str, str, str] | None:
    """The hidden states, the matrix and the bias that a query, key or value is made of; None: it is made otherwise."""
    add = graph.makers.get(name)
    if add is None or add.op_type != "Add":
        return None
    bias = next((one for one in add.input if one in graph.weights), None)
    product = next((graph.makers[one] for one in add.input if one in graph.makers), None)
    if bias is None or product is None or product.op_type != "MatMul" or product.input[1] not in graph.weights:
        return None
    return product.input[0], product.input[1], bias


def _attention(graph: Graph, join: Any, projections: list[Any], heads: int) -> list[Any]:
    """One matrix product makes query, key and value of each head, side by side, as the operator reads them."""
    from onnx import helper

    hidden, output = projections[0][0], join.output[0]
    matrices, biases = [one[1] for one in projections], [one[2] for one in projections]
    width = graph.values(matrices[0]).shape[1]
    matrix, bias = " ".join(matrices), " ".join(biases)
    if matrix not in graph.weights:
        parts = [graph.values(one).reshape(-1, heads, 1, width // heads) for one in matrices]
        graph.weights[matrix] = _tensor(matrix, np.concatenate(parts, axis=2).reshape(-1, 3 * width))
        graph.weights[bias] = _tensor(bias, np.concatenate([graph.values(one) for one in biases]))
    shapes = {"by_heads": (-1, heads, 3, width // heads), "of_one_row": (1, -1, width)}
    for name, shape in shapes.items():
        graph.weights[name] = _tensor(name, np.array(shape, np.int64))
    return [
        helper.make_node("MatMul", [hidden, matrix], [f"{output}_made"], f"{output}_made"),
        helper.make_node("Reshape", [f"{output}_made", "by_heads"], [f"{output}_by_heads"], f"{output}_by_heads"),
        helper.make_node(
            OPERATOR,
            [f"{output}_by_heads", "", "", bias, _OFFSET, _ENDS],
            [f"{output}_attended"],
            f"{output}_attended",
            domain="com.microsoft",
            num_heads=heads,
        ),
        helper.make_node("Reshape", [f"{output}_attended", "of_one_row"], [output], f"{output}_joined"),
    ]


def _tensor(name: str, values: np.ndarray) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(values, name)
