"""Traced attention: encoders whose attention is more than a product of queries and keys, as operators from the start.

Rotated queries and windows leave no pattern that a graph could be searched for. While such a model is traced, its
attention modules run code of this file:

ModernBERT     one operator a layer; queries and keys rotated by RotaryEmbedding, some layers in windows (windows.py)
DeBERTa 1-3    the model's own attention, with a bias of distances that needs no index (distances.py)

The operator has the mask of the batch, and takes no account of it where nothing is padded (attention.py). On two cores
in int8, layers of ModernBERT-base's width took 1.16 times as long before for a row of 16 tokens, 1.12 for 128, 1.9 for
2,048 and 3.3 for 4,096. Others were no faster with the operator and keep their nodes: RoFormer (4 padded rows of 128
tokens took 1.08 times as long with it) and MPNet, whose bias the operator copies for each row (1.19 times).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from checkpoints.frameworks import exclusive
from checkpoints.generations import OPTIMUM, exporter_here
from export.graphs.encoders.distances import disentangled_bias, outside_of_window
from export.graphs.trace import contrib

OPERATOR = "MultiHeadAttention"


class TracedAttention:
    """What the attention modules of one model share while a forward of it is traced."""

    mask: Any
    """(rows, tokens) int32, 1 for a token and 0 for padding."""
    window: int | None = None
    """Where it is set, the layers with a bias attend to tokens at most so far away, and their bias says that alone."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def begin(self, _model: Any, _arguments: Any, options: Any) -> None:
        import torch

        self._made.clear()
        self.mask = options["attention_mask"].to(torch.int32)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes, once in a forward."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def attend(self, heads: int, query: Any, key: Any, value: Any, bias: Any = None) -> Any:
        """(rows, tokens, heads * width) of all three; `bias` is (1, 1, tokens, tokens)."""
        inputs = [query, key, value, None, self.mask, *([] if bias is None else [bias])]
        return contrib(OPERATOR, inputs, like=[query], num_heads=heads)[0]

    def rotate(self, hidden: Any, cos: Any, sin: Any) -> Any:
        """(rows, tokens, heads * width), rotated by halves of each head; the angles are (tokens, width / 2)."""
        import torch

        first = self.once("first position", lambda: torch.zeros(1, dtype=torch.int64))
        return contrib("RotaryEmbedding", [hidden, first, cos, sin], like=[hidden])[0]


@contextmanager
def traced_attention(model: Any) -> Iterator[TracedAttention]:
    """Within it, `model` is traced with operators for its attention; `has_traced_attention` says for which models."""
    traced = TracedAttention()
    replaced = [
        (module, method, function)
        for module in model.modules()
        for method, function in _REPLACED.get(type(module).__name__, {}).items()
        if hasattr(module, method)
    ]
    with exclusive:
        handle = model.base_model.register_forward_pre_hook(traced.begin, with_kwargs=True)
        for module, method, function in replaced:
            setattr(module, method, partial(function, traced, module))
        try:
            yield traced
        finally:
            handle.remove()
            for module, method, _function in replaced:
                delattr(module, method)


def has_traced_attention(model: Any) -> bool:
    """Whether the attention of a model can be traced as operators."""
    if model.config.is_encoder_decoder or getattr(model.config, "is_decoder", False):
        return False
    return any(type(one).__name__ in _REPLACED for one in model.modules())


def _modernbert(
    traced: TracedAttention, module: Any, hidden: Any, *_given: Any, position_ids: Any, **_options: Any
) -> tuple[Any]:
    """Of transformers 4, whose layers make their own angles."""
    rotary = module.rotary_emb
    tables = traced.once(tuple(rotary.inv_freq.tolist()), lambda: _halves(rotary(hidden, position_ids)))
    return (_attended(traced, module, hidden, tables, module.local_attention[0]),)


def _modernbert5(
    traced: TracedAttention, module: Any, hidden: Any, position_embeddings: Any, **_options: Any
) -> tuple[Any, None]:
    """Of transformers 5, whose model makes the angles of each kind of layer; a window counts the token itself."""
    tables = traced.once(module.sliding_window, lambda: _halves(position_embeddings))
    return _attended(traced, module, hidden, tables, (module.sliding_window or 0) - 1), None


def _halves(angles: Any) -> tuple[Any, ...]:
    """Cosines and sines, each value once: (tokens, width / 2), of (1, tokens, width)."""
    return tuple(one[0, :, : one.shape[-1] // 2] for one in angles)


def _attended(traced: TracedAttention, module: Any, hidden: Any, tables: Any, window: int) -> Any:
    query, key, value = module.Wqkv(hidden).chunk(3, dim=-1)
    query, key = (traced.rotate(one, *tables) for one in (query, key))
    bias = None
    if window > 0:
        traced.window = window
        bias = traced.once("outside of the window", lambda: outside_of_window(hidden.shape[1], window))
    attended = traced.attend(module.config.num_attention_heads, query, key, value, bias)
    return module.out_drop(module.Wo(attended))


def _deberta(
    traced: TracedAttention, module: Any, query: Any, key: Any, _relative: Any, embeddings: Any, scale_factor: int
) -> Any:
    return disentangled_bias(traced.once, module, query, key, embeddings, scale_factor)


_REPLACED: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "ModernBertAttention": {"forward": _modernbert if exporter_here() == OPTIMUM else _modernbert5},
    "DisentangledSelfAttention": {"disentangled_att_bias": _deberta, "disentangled_attention_bias": _deberta},
}
"""By the name of a module's class: the methods that are replaced while it is traced, and by what."""
