"""Stand-in: PackedMultiHeadAttention of operators that every provider has, so that a packed graph runs on a CPU.

It makes the rows that the packed operator finds, pads them, attends with MultiHeadAttention under a mask, and packs the
result again. All other nodes of the graph stay as they are.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tokenizers import Encoding

from export.graphs.encoders.attention import TOLERANCE
from export.graphs.encoders.packed import OPERATOR
from export.graphs.graph import save
from pipelines.runtime.rows import EncoderRow, PackedRows
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig

_DOMAIN = "sextet"
_LENGTHS = (9, 2, 5)
# qkv (tokens, heads, 3, width), bias (3 * heads * width,), offset (rows, longest), ends (rows + 1,)
_FUNCTION = """
<opset_import: ["": 18, "com.microsoft": 1], domain: "sextet">
PackedMultiHeadAttention <num_heads> (qkv, key, value, bias, offset, ends) => (attended) {
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    three = Constant <value = int64 {3}> ()
    minus_one = Constant <value = int64 {-1}> ()
    first_axis = Constant <value = int64[1] {0}> ()
    second_axis = Constant <value = int64[1] {1}> ()
    first = Constant <value = int64[1] {0}> ()
    second = Constant <value = int64[1] {1}> ()
    last = Constant <value = int64[1] {-1}> ()
    all = Constant <value = int64[1] {9223372036854775807}> ()
    flat = Constant <value = int64[2] {3, -1}> ()

    count = Shape <end = 1> (qkv)
    grid = Shape (offset)
    rows = Gather (grid, first)
    longest = Gather (grid, second)
    ends_int64 = Cast <to = 7> (ends)
    starts = Slice (ends_int64, first, last, first_axis)
    stops = Slice (ends_int64, second, all, first_axis)
    scalar_count = Squeeze (count)
    token = Range (zero, scalar_count, one)
    token_column = Unsqueeze (token, second_axis)
    is_later = GreaterOrEqual (token_column, stops)
    is_later_int64 = Cast <to = 7> (is_later)
    row = ReduceSum <keepdims = 0> (is_later_int64, second_axis)
    start = Gather (starts, row)
    position = Sub (token, start)
    row_start = Mul (row, longest)
    place = Add (row_start, position)
    place_column = Unsqueeze (place, second_axis)

    by_part = Transpose <perm = [2, 0, 1, 3]> (qkv)
    shape_of_parts = Constant <value = int64[3] {3, 0, -1}> ()
    parts = Reshape (by_part, shape_of_parts)
    bias_of_parts = Reshape (bias, flat)
    bias_rows = Unsqueeze (bias_of_parts, second_axis)
    biased = Add (parts, bias_rows)
    wide = Shape <start = 2> (biased)
    places = Mul (rows, longest)
    padded_shape = Concat <axis = 0> (places, wide)
    batch_shape = Concat <axis = 0> (rows, longest, wide)
    nothing = ConstantOfShape (padded_shape)
    empty = CastLike (nothing, qkv)
    query_tokens = Gather (biased, zero)
    key_tokens = Gather (biased, one)
    value_tokens = Gather (biased, two)
    query_padded = ScatterND (empty, place_column, query_tokens)
    key_padded = ScatterND (empty, place_column, key_tokens)
    value_padded = ScatterND (empty, place_column, value_tokens)
    query_batch = Reshape (query_padded, batch_shape)
    key_batch = Reshape (key_padded, batch_shape)
    value_batch = Reshape (value_padded, batch_shape)

    lengths = Sub (stops, starts)
    length_column = Unsqueeze (lengths, second_axis)
    scalar_longest = Squeeze (longest)
    column = Range (zero, scalar_longest, one)
    is_real = Less (column, length_column)
    mask = Cast <to = 6> (is_real)
    attended_batch = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (
        query_batch, key_batch, value_batch, , mask
    )
    attended_padded = Reshape (attended_batch, padded_shape)
    attended = Gather (attended_padded, place)
}
"""


def write_stand_in(packed: Path, graph: Path) -> None:
    """Write a packed graph with the stand-in for its attention; `graph` runs on any provider."""
    import onnx
    from onnx import helper, parser

    model = onnx.load(packed)
    for node in model.graph.node:
        if node.op_type == OPERATOR:
            node.domain = _DOMAIN
    model.functions.append(parser.parse_function(_FUNCTION))
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    save(model, graph)


def agrees(packed: Path, model: Any) -> bool:
    """Whether a packed graph makes of rows of several lengths what `model` makes of each row alone.

    Attention that adds a bias to its scores, such as MPNet's, looks like attention under a mask.
    """
    import torch

    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, sum(_LENGTHS))
    rows = [EncoderRow.of(Encoding(), one) for one in np.split(ids, np.cumsum(_LENGTHS)[:-1])]
    with TemporaryDirectory() as folder:
        stand_in = Path(folder, packed.name)
        write_stand_in(packed, stand_in)
        session = InferenceSession(stand_in, SessionConfig())
        layout = PackedRows(session.input_names, 0)
        outputs = session.run(layout.feeds(rows))
    with torch.no_grad():
        alone = [model(torch.from_numpy(row.input_ids)[None]) for row in rows]
    for name, output in outputs.items():
        per_token = session.output_shapes[name][0] == "tokens"
        ours = layout.by_row(output, rows) if per_token else list(output)
        for mine, theirs in zip(ours, (one[name][0].numpy() for one in alone), strict=True):
            if not np.abs(mine - theirs).max() <= TOLERANCE * max(1.0, float(np.abs(theirs).max())):
                return False
    return True
