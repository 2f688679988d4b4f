"""How a decoder-only model attends: found by running it once, so that no list of architectures is needed.

A model can keep its KV cache in slots where GroupQueryAttention can stand for its attention: `describe` runs two tokens
through the model with an attention function that takes notes, and says what the operator needs to know of each layer
(heads, scale, window, softcap), or why it cannot stand for it. Three ways lead to a model's attention:

* transformers' attention interface, where a function has a name (most models since 2024);
* `torch.nn.functional.scaled_dot_product_attention`, which older code calls itself (Falcon, StableLM, Nemotron);
* GPT-Neo's own method.

Rotary positions: the operator rotates by itself, in each layer that rotates. Where a layer does it in a way that the
operator cannot, the model's own code does in all of them, in the graph.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from checkpoints.frameworks import exclusive
from pipelines.errors import first_line
from pipelines.runtime.artifact import rotations

NAME = "sextet_slots"
_FIXED_ROTATIONS = (
    "default",
    "linear",
    "llama3",
    "yarn",
    "longrope",
    "proportional",
)  # within the positions of a graph
WIDTH_OF_A_HEAD = 8
"""GroupQueryAttention takes heads of a multiple of this width."""
_ROTATED_WIDTH = 16  # and rotates a multiple of this width, of heads of such a multiple
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_UNDERSTOOD = ("scaling", "scale", "sliding_window", "softcap")
_WITHOUT_EFFECT = (
    "dropout", "dropout_p", "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states",
    "return_dict", "logits_to_keep", "attn_mask", "attention_mask", "is_causal", "enable_gqa", "head_mask",
    "layer_head_mask", "past_key_values", "past_key_value", "position_embeddings", "reorder_and_upcast_attn",
    "target_dtype", "num_items_in_batch",
)  # fmt: skip

Attend = Callable[["Call"], Any]
"""What attends in place of the model: it returns (rows, tokens, heads, width)."""


class ObstacleError(Exception):
    """Why GroupQueryAttention cannot stand for a model's attention, in a few words."""


@dataclass(frozen=True)
class Call:
    """One layer attends: query (rows, heads, tokens, width), key and value (rows, kv_heads, tokens, width)."""

    layer: int
    query: Any
    key: Any
    value: Any
    scale: float
    window: int | None = None
    softcap: float = 0.0


@dataclass(frozen=True)
class Attention:
    """What is equal in all layers. With `rotations` the operator rotates queries and keys; else the model's own code
    does, or there are no rotary positions.
    """

    layers: int
    heads: int
    kv_heads: int
    width: int
    rotations: "Rotations | None" = None


def describe(model: Any) -> Attention:
    """The attention of a decoder-only model; raises ObstacleError."""
    try:
        return _described(model)
    except ObstacleError:
        raise
    except Exception as error:  # the model's own code, called in a way that it may not know
        raise ObstacleError(f"it does not run with another attention ({first_line(error)})") from error


def _described(model: Any) -> Attention:
    import torch

    _check_config(model.config)
    calls: list[Call] = []
    rotations = Rotations(model)

    def note(call: Call) -> Any:
        calls.append(call)
        rotations.end_layer(call.layer, call.query)
        return torch.zeros(*call.query.transpose(1, 2).shape[:3], call.value.shape[-1])

    ids = torch.ones(1, 2, dtype=torch.int64)
    with attending(model, note) as new_cache, rotations.noted(), torch.no_grad():
        model(input_ids=ids, position_ids=torch.arange(2)[None], past_key_values=new_cache(), use_cache=True)
    layers = int(model.config.num_hidden_layers)
    if sorted(call.layer for call in calls) != list(range(layers)):
        raise ObstacleError(f"{len(calls)} of its {layers} layers attend in a way that is known")
    shapes = {(call.query.shape[1], call.key.shape[1], call.query.shape[-1], call.value.shape[-1]) for call in calls}
    if len(shapes) > 1:
        raise ObstacleError("its layers have different heads")
    ((heads, kv_heads, width, value_width),) = shapes
    if width != value_width:
        raise ObstacleError("its keys and values have different widths")
    if width % WIDTH_OF_A_HEAD:
        raise ObstacleError(f"heads of width {width} are not a multiple of {WIDTH_OF_A_HEAD}")
    by_operator = rotations.are_known and width % _ROTATED_WIDTH == 0
    return Attention(layers, heads, kv_heads, width, rotations if by_operator else None)


@contextmanager
def attending(model: Any, attend: Attend) -> Iterator[Callable[[], Any]]:
    """Let `attend` attend in place of the model; yields what makes the KV cache to call the model with.

    The cache returns new keys and values as they are: the operator appends them to the past. Classes and functions of
    transformers and torch are changed meanwhile, for all models of the process: one thread at a time.
    """
    from transformers import DynamicCache

    caches: list[Any] = []

    class PassingCache(DynamicCache):  # type: ignore[misc]
        """`newest` are the layer, the keys and the values of the last update."""

        def update(self, key: Any, value: Any, layer_idx: int, *_arguments: Any, **_options: Any) -> tuple[Any, Any]:
            self.newest = (layer_idx, key, value)
            return key, value

    def new_cache() -> Any:
        caches[:] = [PassingCache()]
        return caches[0]

    with exclusive, _way(model)(model, attend, caches):
        yield new_cache


def check_experts(config: Any) -> None:
    """Raise ObstacleError for a mixture of experts."""
    if any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS):
        raise ObstacleError("its experts are chosen by what it reads, which a traced graph cannot")


def _check_config(config: Any) -> None:
    """Raise ObstacleError for what a run of two tokens does not show."""
    check_experts(config)
    kinds = getattr(config, "layer_types", None) or ()
    if other := next((one for one in kinds if "attention" not in one or one.startswith("linear")), None):
        raise ObstacleError(f"not all of its layers attend to tokens ({other})")
    if getattr(config, "alibi", False):
        raise ObstacleError("its attention adds a bias by distance (ALiBi)")
    given = {name: getattr(config, name, None) for name in ("rope_scaling", "rope_parameters")}
    for rope in rotations(given):
        rotation = rope.get("rope_type", rope.get("type", "default"))
        if rotation not in _FIXED_ROTATIONS:
            raise ObstacleError(f"rope_type {rotation} depends on the length of the text")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or not getattr(config, "scale_attn_weights", True):
        raise ObstacleError("its attention is scaled in a way of its own")


def _way(model: Any) -> Callable[[Any, Attend, list[Any]], Any]:
    """How to get between a model and its attention."""
    modeling = sys.modules[type(model).__module__]
    if model.config.model_type == "gpt_neo":
        return _in_gpt_neo
    if hasattr(modeling, "ALL_ATTENTION_FUNCTIONS"):
        return _by_the_interface
    if model._supports_sdpa:
        return _by_torch
    raise ObstacleError(f"its attention is not known for {model.config.model_type}")


@contextmanager
def _by_the_interface(model: Any, attend: Attend, _caches: list[Any]) -> Iterator[None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend_in_layer(
        module: Any, query: Any, key: Any, value: Any, _mask: Any = None, **options: Any
    ) -> tuple[Any, None]:
        return attend(_call(module.layer_idx, query, key, value, options)), None

    chosen = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = attend_in_layer
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = chosen
        del ALL_ATTENTION_FUNCTIONS[NAME]  # it holds `attend`, and so the model with its weights


@contextmanager
def _by_torch(_model: Any, attend: Attend, caches: list[Any]) -> Iterator[None]:
    """The cache has seen the layer's keys and values just before, and not yet repeated for every query head."""
    import torch

    functional: Any = torch.nn.functional
    attended = functional.scaled_dot_product_attention

    def attend_in_layer(query: Any, _key: Any, _value: Any, _mask: Any = None, **options: Any) -> Any:
        layer, key, value = caches[0].newest
        return attend(_call(layer, query, key, value, options)).transpose(1, 2)

    functional.scaled_dot_product_attention = attend_in_layer
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = attended


@contextmanager
def _in_gpt_neo(_model: Any, attend: Attend, _caches: list[Any]) -> Iterator[None]:
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

    def attend_in_layer(module: Any, query: Any, key: Any, value: Any, *_masks: Any) -> tuple[Any, None]:
        local = module.config.attention_layers[module.layer_id] == "local"
        window = module.config.window_size if local else None
        return attend(Call(module.layer_id, query, key, value, 1.0, window)).transpose(1, 2), None

    attended = GPTNeoSelfAttention._attn
    GPTNeoSelfAttention._attn = attend_in_layer
    try:
        yield
    finally:
        GPTNeoSelfAttention._attn = attended


def _call(layer: int, query: Any, key: Any, value: Any, options: dict[str, Any]) -> Call:
    """A call of the interface or of torch; raises ObstacleError for an option that the operator does not know."""
    for name, given in options.items():
        is_set = given is not None and given is not False
        if is_set and name not in (*_UNDERSTOOD, *_WITHOUT_EFFECT):
            raise ObstacleError(f"its attention takes {name}")
    scale = options.get("scaling") or options.get("scale") or int(query.shape[-1]) ** -0.5
    return Call(
        layer, query, key, value, float(scale), options.get("sliding_window"), float(options.get("softcap") or 0.0)
    )


@dataclass(frozen=True)
class Rotation:
    """How a layer rotates: by neighbouring pairs (`interleaved`) or by halves, and by the angles of which module of the
    model; `repeats` where its table has every value twice in a row.
    """

    interleaved: bool
    repeats: bool
    rotary: int


class Rotations:
    """The rotations of a model while it runs, and whether the operator can do them.

    It rotates the beginning of each head, or all of it, and takes cosines and sines from a table. Layers may have
    tables of their own (Gemma 3), and some may rotate nothing (SmolLM3).
    """

    def __init__(self, model: Any) -> None:
        self._modeling: Any = sys.modules[type(model).__module__]
        self._rotate: Any = getattr(self._modeling, "apply_rotary_pos_emb", None)
        self._rotaries = [one for one in model.base_model.modules() if "Rotary" in type(one).__name__]
        self.layers: dict[int, Rotation | None] = {}
        """By layer; None: it does not rotate."""
        self._unknown = False
        self._newest: tuple[Any, Rotation | None] | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Take notes of every rotation."""

        def rotate(*given: Any, **options: Any) -> Any:
            rotated = self._rotate(*given, **options)
            if not isinstance(rotated, tuple) or len(given) < 4:  # queries and keys each by themselves (Gemma 4)
                self._unknown = True
                return rotated
            query, _key, cos, sin = given[:4]
            self._newest = (rotated[0], self._kind(query, cos, sin, rotated[0]))
            return rotated

        with self._replaced(rotate):
            yield

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Let queries and keys pass as they are."""
        with self._replaced(lambda query, key, *_rotation, **_options: (query, key)):
            yield

    def end_layer(self, layer: int, query: Any) -> None:
        """A layer attends with these queries."""
        import torch

        newest, self._newest = self._newest, None
        if newest is None:
            self.layers[layer] = None
            return
        rotated, kind = newest
        if kind is None or not torch.equal(query[..., : rotated.shape[-1]], rotated):
            self._unknown = True
        self.layers[layer] = kind

    @property
    def are_known(self) -> bool:
        """Whether the operator can do all rotations that there are."""
        return not self._unknown and any(self.layers.values())

    def tables(self, rotation: Rotation, positions: int) -> tuple[Any, Any]:
        """Cosines and sines, (positions, rotated width / 2) each."""
        import torch

        cos, sin = self._rotaries[rotation.rotary](torch.zeros(1), torch.arange(positions)[None])
        return tuple(_half(one[0], repeats=rotation.repeats).contiguous() for one in (cos, sin))

    def _kind(self, query: Any, cos: Any, sin: Any, rotated: Any) -> Rotation | None:
        """The rotation; None for one that the operator cannot do."""
        import torch

        width = cos.shape[-1]
        if rotated.shape != query.shape or width > query.shape[-1] or width % _ROTATED_WIDTH:
            return None
        rotary = next((index for index, one in enumerate(self._rotaries) if _makes(one, cos, sin)), None)
        if rotary is None:
            return None
        for pairs, repeats in product((False, True), repeat=2):
            expected = _rotated(query, *(_half(one, repeats=repeats)[:, None] for one in (cos, sin)), pairs=pairs)
            if torch.allclose(rotated, expected, atol=1e-5):
                return Rotation(pairs, repeats, rotary)
        return None

    @contextmanager
    def _replaced(self, rotate: Any) -> Iterator[None]:
        if self._rotate is None:
            yield
            return
        self._modeling.apply_rotary_pos_emb = rotate
        try:
            yield
        finally:
            self._modeling.apply_rotary_pos_emb = self._rotate


def _makes(rotary: Any, cos: Any, sin: Any) -> bool:
    """Whether a module makes these angles for the first positions."""
    import torch

    try:
        own = rotary(torch.zeros(1), torch.arange(cos.shape[-2])[None])
    except Exception:  # one that is called in another way
        return False
    return isinstance(own, tuple) and all(torch.equal(given, one) for given, one in zip((cos, sin), own, strict=True))


def _half(table: Any, *, repeats: bool) -> Any:
    """Each value once, of a table that has every value twice: one after the other, or the whole row again."""
    return table[..., ::2] if repeats else table[..., : table.shape[-1] // 2]


def _rotated(query: Any, cos: Any, sin: Any, *, pairs: bool) -> Any:
    """What the operator makes of `query`, (rows, heads, tokens, width), with (rows, 1, tokens, half) of a table."""
    import torch

    width = 2 * cos.shape[-1]
    turned, rest = query[..., :width], query[..., width:]
    first, second = (turned[..., ::2], turned[..., 1::2]) if pairs else turned.chunk(2, dim=-1)
    both = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(both, dim=-1).flatten(-2) if pairs else torch.cat(both, dim=-1)
    return torch.cat((turned, rest), dim=-1)
