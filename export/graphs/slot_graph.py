"""Slot graph: a decoder-only model whose rows lie in KV cache slots of one buffer, each row at its own length.

Optimum's graph concatenates the whole KV cache at every step and needs all rows at one length. Here attention is ONNX
Runtime's GroupQueryAttention, which writes new keys and values in place where past and present are bound to the same
buffer. Tracing puts the operator in: the model's own code runs, with another attention function.

input_ids                       (rows, tokens)    int64
position_ids                    (rows, tokens)    int64    where the model adds or rotates positions itself
seqlens_k                       (rows,)           int32    the tokens of each row after this step, minus one
total_sequence_length           ()                int32    the longest row after this step
logits_at                       (n,)              int64    for which tokens to compute logits, counted row by row
past_key_values.N.key/value     (rows, kv_heads, max_tokens, head_dim)
-> logits                       (n, vocab)
   present.N.key/value          as past_key_values

Several rows may read several tokens at once where all of them begin: `total_sequence_length` is then the width of
`input_ids`, and shorter rows are padded at their end. Rows that go on read one token each, or one row reads alone.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoints.frameworks import exclusive
from export.graphs.slot_fusions import ROOT_MEAN_SQUARE, fuse

ARCHITECTURES = ("gpt2", "gpt_neo", "llama", "qwen2")
_NAME = "sextet_slots"
OPSET = 18
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # the others depend on how long the text is
_ROTATED_TOGETHER = 16  # GroupQueryAttention rotates heads of a multiple of this width


def obstacle(config: Any) -> str | None:
    """Why a decoder-only model cannot have a slot graph; None where it can."""
    if config.model_type not in ARCHITECTURES:
        return f"its attention is not known for {config.model_type}"
    rope: dict[str, Any] = getattr(config, "rope_scaling", None) or {}
    rotation = rope.get("rope_type", rope.get("type", "default"))
    if rotation not in _FIXED_ROTATIONS:
        return f"rope_type {rotation} depends on the length of the text"
    if config.model_type == "gpt2" and (config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights):
        return "its attention is scaled in a way of its own"
    return None


def is_slot_graph(model: Any) -> bool:
    """Whether an ONNX model is a slot graph: this one, or one of export.graphs.seq2seq_slot_graph."""
    ports = {one.name for one in (*model.graph.input, *model.graph.output)}
    return bool(ports & {"seqlens_k", "cross_key_values"})


def convert_to_slots(model: Any, graph: Path) -> None:
    """Write the slot graph of a model without `obstacle`, fp32."""
    import torch

    decoder = _slot_decoder(model)
    heads, layers, width = decoder.kv_heads, decoder.layers, decoder.head_dim
    caches = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    rows, tokens, capacity = 2, 3, 8
    past = [torch.zeros(rows, heads, capacity, width) for _ in caches]
    example = (
        torch.ones(rows, tokens, dtype=torch.int64),
        torch.arange(tokens).repeat(rows, 1),
        torch.full((rows,), tokens - 1, dtype=torch.int32),
        torch.tensor(tokens, dtype=torch.int32),
        torch.tensor([tokens - 1]),
        past,
    )
    names = ["input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_at"]
    axes = {"input_ids": {0: "rows", 1: "tokens"}, "position_ids": {0: "rows", 1: "tokens"}}
    axes |= {"seqlens_k": {0: "rows"}, "logits_at": {0: "n"}, "logits": {0: "n"}}
    ports = [[f"{kind}.{name}" for name in caches] for kind in ("past_key_values", "present")]
    axes |= {name: {0: "rows", 2: "max_tokens"} for port in ports for name in port}
    with _traced(model, decoder), torch.no_grad():
        torch.onnx.export(
            decoder,
            example,
            str(graph),
            input_names=[*names, *ports[0]],
            output_names=["logits", *ports[1]],
            dynamic_axes=axes,
            opset_version=OPSET,
            custom_opsets={"com.microsoft": 1},
            dynamo=False,
        )
    _fuse(graph)


def _slot_decoder(model: Any) -> Any:
    """The module to trace: the model with its KV cache as plain tensors, and with logits at `logits_at` alone."""
    import torch
    from transformers import DynamicCache

    class SlotCache(DynamicCache):  # type: ignore[misc]
        """Returns new keys and values as they are: the attention operator appends them to the past."""

        def update(self, key: Any, value: Any, *_arguments: Any, **_options: Any) -> tuple[Any, Any]:
            return key, value

    class TracedModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = model.config
            self.model = model
            self.heads = config.num_attention_heads
            self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
            self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
            self.layers = config.num_hidden_layers
            self.width = model.get_output_embeddings().weight.shape[1]
            self.rotates = hasattr(model.base_model, "rotary_emb") and self.head_dim % _ROTATED_TOGETHER == 0
            if self.rotates:
                every = torch.arange(config.max_position_embeddings)[None]
                cos, sin = model.base_model.rotary_emb(torch.zeros(1), every)  # (1, positions, head_dim), halves alike
                self.register_buffer("cos_cache", cos[0, :, : self.head_dim // 2].contiguous())
                self.register_buffer("sin_cache", sin[0, :, : self.head_dim // 2].contiguous())

        def forward(
            self, input_ids: Any, position_ids: Any, seqlens_k: Any, total: Any, logits_at: Any, past: list[Any]
        ) -> tuple[Any, ...]:
            self.lengths, self.past, self.present = (seqlens_k, total), past, [None] * len(past)
            hidden = self.model.base_model(
                input_ids=input_ids, position_ids=position_ids, past_key_values=SlotCache(), use_cache=True
            ).last_hidden_state
            return self.model.get_output_embeddings()(hidden.reshape(-1, self.width)[logits_at]), *self.present

        def attend(self, layer: int, query: Any, key: Any, value: Any, scale: float, window: int | None) -> Any:
            """(rows, heads, tokens, head_dim) each -> (rows, tokens, heads, head_dim)."""
            rows, _, tokens, _ = query.shape
            packed = [one.transpose(1, 2).reshape(rows, tokens, -1) for one in (query, key, value)]
            rotation = [self.cos_cache, self.sin_cache] if self.rotates else []
            past = self.past[2 * layer : 2 * layer + 2]
            attended, self.present[2 * layer], self.present[2 * layer + 1] = contrib(
                "GroupQueryAttention",
                [*packed, *past, *self.lengths, *rotation],
                like=[packed[0], *past],
                num_heads=self.heads,
                kv_num_heads=self.kv_heads,
                scale=scale,
                do_rotary=int(self.rotates),
                local_window_size=-1 if window is None else window,
            )
            return attended.view(rows, tokens, self.heads, self.head_dim)

    return TracedModel().eval()


@contextmanager
def _traced(model: Any, decoder: Any) -> Iterator[None]:
    """Let the model attend, and not rotate, through `decoder`, and name its norms; afterwards all is as it was.

    Some of this changes classes and modules of transformers, for all models of the process: one thread at a time.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

    def attend(module: Any, query: Any, key: Any, value: Any, _mask: Any = None, **options: Any) -> tuple[Any, None]:
        scale = options.get("scaling") or decoder.head_dim**-0.5
        return decoder.attend(module.layer_idx, query, key, value, scale, options.get("sliding_window")), None

    def attend_in_gpt_neo(module: Any, query: Any, key: Any, value: Any, *_masks: Any) -> tuple[Any, None]:
        local = module.config.attention_layers[module.layer_id] == "local"
        window = module.config.window_size if local else None
        return decoder.attend(module.layer_id, query, key, value, 1.0, window).transpose(1, 2), None

    with exclusive:
        modeling: Any = sys.modules[type(model).__module__]
        chosen, rotate = model.config._attn_implementation, getattr(modeling, "apply_rotary_pos_emb", None)
        neo = GPTNeoSelfAttention._attn
        norms = {type(one): type(one).forward for one in model.modules() if type(one).__name__.endswith("RMSNorm")}
        ALL_ATTENTION_FUNCTIONS.register(_NAME, attend)
        model.config._attn_implementation = _NAME
        GPTNeoSelfAttention._attn = attend_in_gpt_neo
        for norm in norms:
            norm.forward = _norm
        if decoder.rotates:
            modeling.apply_rotary_pos_emb = lambda query, key, *_rotation: (query, key)
        try:
            yield
        finally:
            model.config._attn_implementation = chosen
            GPTNeoSelfAttention._attn = neo
            for norm, forward in norms.items():
                norm.forward = forward
            if decoder.rotates:
                modeling.apply_rotary_pos_emb = rotate


def _norm(module: Any, values: Any) -> Any:
    """The forward of a root mean square norm while it is traced."""
    return contrib(ROOT_MEAN_SQUARE, [values, module.weight], like=[values], epsilon=float(module.variance_epsilon))[0]


def _fuse(graph: Path) -> None:
    """Fuse nodes and drop unread inputs: the exporter keeps position_ids where the attention operator rotates."""
    import onnx

    model = onnx.load(graph)
    fuse(model)
    read = {name for node in model.graph.node for name in node.input}
    kept = [one for one in model.graph.input if one.name in read]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.save(model, graph)


def contrib(operator: str, inputs: Sequence[Any], like: Sequence[Any], **attributes: float) -> tuple[Any, ...]:
    """An operator of ONNX Runtime (domain com.microsoft) in a traced graph: one output for each tensor of `like`.

    An output has the shape and dtype of its tensor. None in `inputs` leaves an optional input out. PyTorch computes
    nothing and returns copies of `like`; only the graph runs the operator.
    """
    import torch

    class Contrib(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, outputs: int, *tensors: Any) -> tuple[Any, ...]:
            return tuple(one.clone() for one in tensors[:outputs])

        @staticmethod
        def symbolic(g: Any, outputs: int, *values: Any) -> Any:
            from torch.onnx import symbolic_helper

            left_out: Any = symbolic_helper._optional_input_placeholder_tensor
            given = [left_out(g) if one is None else one for one in values[outputs:]]
            names = {f"{name}_{'f' if isinstance(value, float) else 'i'}": value for name, value in attributes.items()}
            made = g.op(f"com.microsoft::{operator}", *given, outputs=outputs, **names)
            made = (made,) if outputs == 1 else made
            for output, one in zip(made, values, strict=False):
                output.setType(one.type())
            return tuple(made)

    traced: Any = Contrib
    made: tuple[Any, ...] = traced.apply(len(like), *like, *inputs)
    return made
