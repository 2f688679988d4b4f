"""How an encoder-decoder attends: found in its modules, so that no list of architectures is needed.

A model can have slot graphs (export.graphs.seq2seq_slot_graph) where every attention layer has its four projections
under the names of BART and its descendants, of T5 and its own, or of LED's encoder, and where positions are added to
the embeddings (`embed_positions`) or to the scores (`relative_attention_bias`). What else a layer does, its own code
does in the graph.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.graphs.slot_attention import WIDTH_OF_A_HEAD, ObstacleError, check_experts
from pipelines.errors import first_line

_EXCLUDED = -1e9  # added to the score of a key outside of the window
_OWN, _CROSS = ("self_attn", "SelfAttention"), ("encoder_attn", "EncDecAttention")


@dataclass(frozen=True)
class Layer:
    """An attention layer. `window` are the tokens on either side that it attends to, None for all; `outputs` is how
    many values its forward returns, of which the first is what it attended to.
    """

    module: Any
    query: Any
    key: Any
    value: Any
    output: Any
    heads: int
    width: int
    scale: float
    window: int | None = None
    outputs: int = 2

    @classmethod
    def of(cls, module: Any) -> "Layer":
        """Raises ObstacleError for a layer of another form."""
        reads = inspect.signature(module.forward).parameters  # FSMT's layers read tokens before rows
        if "hidden_states" not in reads:
            raise ObstacleError(f"the attention of {type(module).__name__} is not known")
        if all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "out_proj", "scaling")):
            projections = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
            return cls(module, *projections, module.num_heads, module.head_dim, module.scaling)
        if all(hasattr(module, name) for name in ("q", "k", "v", "o", "n_heads")):
            projections = (module.q, module.k, module.v, module.o)
            return cls(module, *projections, module.n_heads, module.key_value_proj_dim, 1.0)
        if (inner := getattr(module, "longformer_self_attn", None)) is not None:
            projections = (inner.query, inner.key, inner.value, module.output)
            window = int(inner.one_sided_attn_window_size)
            return cls(module, *projections, inner.num_heads, inner.head_dim, inner.head_dim**-0.5, window)
        raise ObstacleError(f"the attention of {type(module).__name__} is not known")


@dataclass(frozen=True)
class Positions:
    """What is added to the embedding of a decoder's token: (positions, d_model); (d_model,) for one of `padding_id`,
    which then counts as no position.
    """

    table: Any
    padding: Any = None
    padding_id: int | None = None


@dataclass(frozen=True)
class Seq2SeqAttention:
    """The attention of an encoder-decoder.

    `encoder_biases` and `biases` are the scores added by distance in each layer of the encoder and of the decoder:
    (heads, distances from -farthest to farthest), (heads, distances from 0 to farthest); None where there are none.
    """

    encoder: tuple[Layer, ...]
    own: tuple[Layer, ...]
    cross: tuple[Layer, ...]
    encoder_biases: tuple[Any, ...]
    biases: tuple[Any, ...]
    positions: Positions | None


def describe_seq2seq(model: Any) -> Seq2SeqAttention:
    """The attention of an encoder-decoder; raises ObstacleError."""
    import torch

    check_experts(model.config)
    encoder, decoder = model.get_encoder(), model.get_decoder()
    attending = (_layers(encoder, _OWN), _layers(decoder, _OWN), _layers(decoder, _CROSS))
    for stack, layers in zip((encoder, decoder, decoder), attending, strict=True):
        count = len(getattr(stack, "layers" if hasattr(stack, "layers") else "block", ()))
        if not layers or len(layers) != count:
            raise ObstacleError(f"{len(layers)} of its {count} layers attend in a way that is known")
    shapes = {(layer.heads, layer.width) for layer in (*attending[1], *attending[2])}
    if len(shapes) > 1:
        raise ObstacleError("its layers have different heads")
    ((_, width),) = shapes
    if width % WIDTH_OF_A_HEAD:
        raise ObstacleError(f"heads of width {width} are not a multiple of {WIDTH_OF_A_HEAD}")
    source = torch.zeros(1, 1, attending[1][0].output.weight.shape[0])
    of_encoder = _with_outputs(encoder, attending[0])
    own, cross = (_with_outputs(decoder, one, encoder_hidden_states=source, use_cache=False) for one in attending[1:])
    biases = _biases(own, bidirectional=False)
    positions = _positions(model, decoder)
    if positions is None and biases[0] is None:
        raise ObstacleError("its positions are not known")
    return Seq2SeqAttention(of_encoder, own, cross, _biases(attending[0], bidirectional=True), biases, positions)


def _layers(stack: Any, names: Sequence[str]) -> tuple[Layer, ...]:
    """The attention layers of a stack, in order; `names` are their attribute names in the architectures."""
    found = [module for name, module in stack.named_modules() if name.rpartition(".")[2] in names]
    return tuple(Layer.of(module) for module in found)


def _with_outputs(stack: Any, layers: Sequence[Layer], **given: Any) -> tuple[Layer, ...]:
    """The layers of a stack with how many values each returns, seen in a run of one token."""
    import torch

    seen: dict[Any, int] = {}
    hooks = [
        layer.module.register_forward_hook(lambda module, _inputs, output: seen.update({module: len(output)}))
        for layer in layers
    ]
    try:
        with torch.no_grad():
            stack(input_ids=torch.ones(1, 1, dtype=torch.int64), **given)
    except Exception as error:  # the model's own code, called in a way that it may not know
        raise ObstacleError(
            f"its {'decoder' if given else 'encoder'} does not run alone ({first_line(error)})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) != len(layers):
        raise ObstacleError(f"{len(seen)} of its {len(layers)} layers attend in a way that is known")
    return tuple(replace(layer, outputs=seen[layer.module]) for layer in layers)


def _biases(layers: Sequence[Layer], *, bidirectional: bool) -> tuple[Any, ...]:
    """The bias of each layer: its own, or that of the layer before, as in T5."""
    import torch

    found: list[Any] = []
    for layer in layers:
        if hasattr(layer.module, "relative_attention_bias"):
            farthest = int(layer.module.relative_attention_max_distance)  # distances beyond it share a bucket
            count = 2 * farthest + 1 if bidirectional else farthest + 1
            with torch.no_grad():
                scores = layer.module.compute_bias(count, count)[0, :, farthest]  # (heads, keys) of one query
            found.append(scores if bidirectional else scores.flip(-1))
        elif layer.window is not None:
            away = torch.arange(-layer.window - 1, layer.window + 2).abs()
            found.append(torch.where(away <= layer.window, 0.0, _EXCLUDED).repeat(layer.heads, 1))
        else:
            found.append(found[-1] if found else None)
    return tuple(found)


def _positions(model: Any, decoder: Any) -> Positions | None:
    """The decoder's position embeddings, as it looks them up itself; None where it has none."""
    import torch

    embedding = getattr(decoder, "embed_positions", None)
    if embedding is None:
        return None
    padding_id = model.config.pad_token_id
    token = 1 if padding_id == 0 else 0
    count = int(getattr(model.config, "max_decoder_position_embeddings", 0) or model.config.max_position_embeddings)
    table = _looked_up(decoder, embedding, torch.full((1, count), token))
    if padding_id is None:
        return Positions(table)
    (padding,) = _looked_up(decoder, embedding, torch.tensor([[padding_id]]))
    return Positions(table) if torch.equal(padding, table[0]) else Positions(table, padding, padding_id)


class _FoundError(Exception):
    """Ends a forward early."""


def _looked_up(decoder: Any, embedding: Any, ids: Any) -> Any:
    """The position embeddings (tokens, d_model) of the ids (1, tokens)."""
    import torch

    seen: list[Any] = []

    def end(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output.detach().reshape(-1, output.shape[-1]))
        raise _FoundError

    hook = embedding.register_forward_hook(end)
    try:
        with torch.no_grad():
            decoder(input_ids=ids, encoder_hidden_states=torch.zeros(1, 1, 1), use_cache=False)
    except _FoundError:
        return seen[0]
    except Exception as error:  # the model's own code, called in a way that it may not know
        raise ObstacleError(f"its positions cannot be read ({first_line(error)})") from error
    finally:
        hook.remove()
    raise ObstacleError("its positions are not known")
