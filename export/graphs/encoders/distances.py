"""Distances: attention biases that depend on how far apart two tokens are, made without an index for each pair of them.

A bias by distance has one value for each of the 2 * tokens - 1 distances of a row. What a query has for all distances,
laid out side by side, holds what it has for each key at another offset: in a table of 2 * tokens columns, read row by
row with one column less, every row begins one place further left. Two copies of whole rows take the place of a lookup
with an index for each pair.
"""

import math
from collections.abc import Callable
from typing import Any

OUTSIDE = -10_000.0
"""What takes a key out of attention; the operator adds it to the score of padding."""


def distances(tokens: Any) -> Any:
    """(2 * tokens,): how far the key of a table's column lies behind the row's query; the last one is not read."""
    import torch

    return torch.arange(2 * tokens) - (tokens - 1)


def outside_of_window(tokens: Any, window: int) -> Any:
    """(1, 1, tokens, tokens): a bias that leaves out what is more than `window` tokens away."""
    import torch

    position = torch.arange(tokens)
    is_outside = (position[:, None] - position).abs() > window
    return (is_outside * OUTSIDE)[None, None]


def by_distance(table: Any) -> Any:
    """(..., tokens, 2 * tokens), by distance -> (..., tokens, tokens), by key."""
    *lead, tokens, _columns = table.shape
    skewed = table.reshape(*lead, -1)[..., tokens - 1 : tokens - 1 + tokens * (2 * tokens - 1)]
    return skewed.reshape(*lead, tokens, 2 * tokens - 1)[..., :tokens]


def disentangled_bias(
    once: Callable[[Any, Callable[[], Any]], Any], module: Any, query: Any, key: Any, embeddings: Any, scale_factor: int
) -> Any:
    """DeBERTa's bias: of a query with its distance to a key, and of a key with that.

    `query` and `key` are (rows, heads, tokens, width), or both first dimensions in one; the bias is (..., tokens,
    tokens). `once` makes what all layers have in common.
    """
    heads, (tokens, width) = module.num_attention_heads, query.shape[-2:]
    span = getattr(module, "pos_ebd_size", module.max_relative_positions)
    embeddings = embeddings[: 2 * span]
    scale = 1 / math.sqrt(module.attention_head_size * scale_factor)

    def of(tokens_of: Any, project: Any, sign: int, scale: float) -> Any:
        index = once(("distances", sign), lambda: _index(module, sign * distances(tokens), span))
        table = (project(embeddings) * scale).index_select(0, index)  # whole rows are copied faster than columns
        by_head = table.view(-1, heads, module.attention_head_size).transpose(0, 1)
        found = by_distance(tokens_of.view(-1, heads, tokens, width) @ by_head.transpose(1, 2))
        return found if query.dim() == 4 else found.flatten(0, 1)

    bias = 0
    if "c2p" in module.pos_att_type:  # the first DeBERTa's query is scaled already
        bias = bias + of(query, _projection(module, "key"), -1, 1.0 if query.dim() == 4 else scale)
    if "p2c" in module.pos_att_type:
        bias = bias + of(key, _projection(module, "query"), 1, scale).transpose(-1, -2)
    return bias


def _index(module: Any, relative: Any, span: int) -> Any:
    """Which embedding a distance from key to query has."""
    if getattr(module, "position_buckets", -1) > 0:
        from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

        relative = make_log_bucket_position(relative, module.position_buckets, module.max_relative_positions).long()
    return (relative + span).clamp(0, 2 * span - 1)


def _projection(module: Any, part: str) -> Any:
    """What makes the `part` (query or key) of a distance from its embedding."""
    if getattr(module, "share_att_key", False):
        return getattr(module, f"{part}_proj")
    names = (f"pos_{part}_proj", "pos_proj" if part == "key" else "pos_q_proj")  # of DeBERTa 2 and 3, and of the first
    return next(getattr(module, name) for name in names if hasattr(module, name))
