"""ALiBi: Falcon rounds its attention bias by distance to bfloat16, also in fp32; torch's exporter would not."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from checkpoints.frameworks import exclusive


@contextmanager
def rounded_alibi(model: Any) -> Iterator[None]:
    """Within it, Falcon's bias is traced with the roundings that it has in PyTorch."""
    if model.config.model_type != "falcon" or not model.config.alibi:
        yield
        return
    modeling: Any = sys.modules[type(model).__module__]
    build = modeling.build_alibi_tensor
    with exclusive:
        modeling.build_alibi_tensor = _alibi(build)
        try:
            yield
        finally:
            modeling.build_alibi_tensor = build


def _alibi(build: Any) -> Any:
    """The function that makes the bias from the slopes of `build`, (rows * heads, 1, tokens)."""
    import torch

    def rounded(values: Any) -> Any:
        return values.to(torch.bfloat16).to(torch.float32)

    def alibi(attention_mask: Any, heads: int, dtype: Any) -> Any:
        # Of two tokens, the second one is at distance 1: its bias is the slope, which is rounded already.
        slopes = build(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
        positions = (attention_mask.cumsum(dim=-1) - 1) * attention_mask
        bias = rounded(slopes[None, :, None] * rounded(positions.to(torch.float32))[:, None])
        return bias.flatten(0, 1)[:, None].to(dtype)

    return alibi
