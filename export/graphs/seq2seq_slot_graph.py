"""Slot graphs of an encoder-decoder: as export.graphs.slot_graph, for rows that also attend to a source each.

The encoder's graph computes everything about a source once, down to the keys and values that each layer of the decoder
attends to. These lie in the slot beside the keys and values of the answer, so the rows of one batch may be at any step
of answers to sources of any length.

Self-attention and cross-attention are both GroupQueryAttention, which reads `seqlens_k` keys of each row. The operator
always appends a new key and value; for a source these are its own last ones, so the buffer keeps its content.

encoder
  input_ids                            (rows, tokens)    int64
  attention_mask                       (rows, tokens)    int64    1 for the tokens of a source, 0 after its end
  -> cross_key_values                  (2 x layers, rows, heads, tokens, head_dim)    keys and values of layer 0, 1, ...

On CUDA the operator is for fp16. T5's bias by distance keeps it from the fused kernels there: they take no bias, and
ONNX Runtime computes such a node by matrix products and a softmax (contrib_ops/cuda/bert/group_query_attention.cc).

decoder, one token of each row
  input_ids                            (rows, 1)         int64
  seqlens_k                            (rows,)           int32    the tokens of each row before this one
  total_sequence_length                ()                int32    the longest row after this step
  source_seqlens_k                     (rows,)           int32    the tokens of each source, minus one
  source_total_sequence_length         ()                int32    the longest source
  past_key_values.N.decoder.key/value  (rows, heads, max_tokens, head_dim)
  past_key_values.N.encoder.key/value  (rows, heads, max_source_tokens, head_dim)
  source_end.N.key/value               (rows, 1, heads x head_dim)    of the last token of each source
  key_positions                        (longest row,)    int64    0, 1, ...; where attention has a bias by distance
  -> logits                            (rows, vocab)
     present.N.decoder/encoder.key/value                as past_key_values
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.graphs.slot_graph import OPSET, contrib

ARCHITECTURES = ("bart", "m2m_100", "marian", "t5")
_RESHAPING = ("m2m_100", "t5")
"""Their decoders reshape ids by their own shape, which a device would ask of the host at every step."""
_WIDTH_OF_A_HEAD = 8  # GroupQueryAttention takes heads of a multiple of it


def obstacle(config: Any) -> str | None:
    """Why an encoder-decoder cannot have slot graphs; None where it can."""
    if config.model_type not in ARCHITECTURES:
        return f"its attention is not known for {config.model_type}"
    width = config.d_kv if config.model_type == "t5" else config.d_model // config.decoder_attention_heads
    if width % _WIDTH_OF_A_HEAD:
        return f"heads of width {width} are not a multiple of {_WIDTH_OF_A_HEAD}"
    return None


def convert_seq2seq_to_slots(model: Any, encoder: Path, decoder: Path) -> None:
    """Write both graphs of a model without `obstacle`, fp32."""
    import torch

    rows, tokens = 2, 3
    ids = torch.ones(rows, tokens, dtype=torch.int64)
    of_rows, per_token = {0: "rows"}, {0: "rows", 1: "tokens"}
    _export(
        _encoder(model),
        (ids, torch.ones_like(ids)),
        encoder,
        {"input_ids": per_token, "attention_mask": per_token},
        {"cross_key_values": {1: "rows", 3: "tokens"}},
    )
    module = _decoder(model)
    parts = [(layer, part) for layer in range(len(module.own)) for part in ("key", "value")]
    caches = [f"{layer}.{side}.{part}" for side in ("decoder", "encoder") for layer, part in parts]
    heads, width = module.own[0].heads, module.own[0].width
    lengths, total = torch.zeros(rows, dtype=torch.int32), torch.tensor(tokens, dtype=torch.int32)
    past = [torch.zeros(rows, heads, tokens, width) for _ in caches]
    ends = [torch.zeros(rows, 1, heads * width) for _ in parts]
    capacity = {"decoder": "max_tokens", "encoder": "max_source_tokens"}
    cached = {name: {0: "rows", 2: capacity[name.split(".")[1]]} for name in caches}
    inputs: dict[str, dict[int, str]] = {"input_ids": of_rows, "seqlens_k": of_rows, "total_sequence_length": {}}
    inputs |= {"source_seqlens_k": of_rows, "source_total_sequence_length": {}}
    inputs |= {f"past_key_values.{name}": axes for name, axes in cached.items()}
    inputs |= {f"source_end.{layer}.{part}": of_rows for layer, part in parts}
    places = []
    if module.farthest:
        places.append(torch.arange(tokens))
        inputs["key_positions"] = {0: "total"}
    outputs = {"logits": of_rows} | {f"present.{name}": axes for name, axes in cached.items()}
    _export(module, (ids[:, :1], lengths, total, lengths, total, past, ends, places), decoder, inputs, outputs)


def _export(module: Any, example: Any, graph: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    import torch

    with module.traced(), torch.no_grad():
        torch.onnx.export(
            module,
            example,
            str(graph),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: axes for name, axes in (inputs | outputs).items() if axes},
            opset_version=OPSET,
            custom_opsets={"com.microsoft": 1},
            dynamo=False,
        )


@dataclass(frozen=True)
class _Attention:
    """The parts of an attention layer, which BART and its descendants name in another way than T5."""

    module: Any
    query: Any
    key: Any
    value: Any
    output: Any
    heads: int
    width: int
    scale: float

    @classmethod
    def of(cls, module: Any) -> "_Attention":
        if hasattr(module, "q_proj"):
            projections = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
            return cls(module, *projections, module.num_heads, module.head_dim, module.scaling)
        projections = (module.q, module.k, module.v, module.o)
        return cls(module, *projections, module.n_heads, module.key_value_proj_dim, 1.0)


def _attentions(stack: Any, *names: str) -> list[_Attention]:
    """The attention layers of a stack, in order; `names` are their attribute names in the architectures."""
    found = [module for name, module in stack.named_modules() if name.rpartition(".")[2] in names]
    return [_Attention.of(module) for module in found]


def _together(layers: Sequence[Any]) -> Any:
    """One linear layer in place of several with the same input: it returns their outputs side by side."""
    import torch

    weight = torch.cat([layer.weight for layer in layers])
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layers[0].bias is not None)
    linear.weight = torch.nn.Parameter(weight.detach())
    if layers[0].bias is not None:
        linear.bias = torch.nn.Parameter(torch.cat([layer.bias for layer in layers]).detach())
    return linear


@contextmanager
def _forwards(instead: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of modules (of these objects, not of their classes); restores them at the end."""
    for module, forward in instead.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in instead:
            del module.forward


def _bias(attention: Any, distances: Any) -> Any:
    """T5's attention bias for relative positions, (distances,) int64 -> (heads, distances)."""
    bucket = attention._relative_position_bucket(
        distances,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return attention.relative_attention_bias(bucket).detach().T.contiguous()


def _encoder(model: Any) -> Any:
    """The module to trace as the encoder's graph."""
    import torch

    class TracedEncoder(torch.nn.Module):
        bias: torch.Tensor
        distances: torch.Tensor | None

        def __init__(self) -> None:
            super().__init__()
            self.stack = model.get_encoder()
            self.own = _attentions(self.stack, "self_attn", "SelfAttention")
            self.inputs = torch.nn.ModuleList(_together((one.query, one.key, one.value)) for one in self.own)
            cross = _attentions(model.get_decoder(), "encoder_attn", "EncDecAttention")
            self.heads, self.width = cross[0].heads, cross[0].width
            self.cross = _together([layer for one in cross for layer in (one.key, one.value)])
            self.farthest = 0
            if model.config.model_type == "t5":
                first = self.own[0].module
                self.farthest = first.relative_attention_max_distance  # distances beyond it share a bucket
                self.register_buffer("bias", _bias(first, torch.arange(-self.farthest, self.farthest + 1)))

        def traced(self) -> Any:
            return _forwards({one.module: self.attending(number) for number, one in enumerate(self.own)})

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            rows, tokens = input_ids.shape
            self.mask, self.distances = attention_mask.to(torch.int32), None
            if self.farthest:
                place = torch.arange(tokens)
                away = (place[None, :] - place[:, None]).clamp(-self.farthest, self.farthest) + self.farthest
                self.distances = self.bias[:, away][None]  # (1, heads, tokens, tokens)
            hidden = self.stack(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return self.cross(hidden).view(rows, tokens, -1, self.heads, self.width).permute(2, 0, 3, 1, 4)

        def attending(self, number: int) -> Callable[..., Any]:
            attention = self.own[number]

            def attend(hidden_states: Any, *_: Any, **_options: Any) -> tuple[Any, None]:
                query, key, value = self.inputs[number](hidden_states).chunk(3, dim=-1)
                (attended,) = contrib(
                    "MultiHeadAttention",
                    [query, key, value, None, self.mask, self.distances],
                    like=[query],
                    num_heads=attention.heads,
                    scale=attention.scale,
                )
                return attention.output(attended), None

            return attend

    return TracedEncoder().eval()


def _decoder(model: Any) -> Any:
    """The module to trace as the decoder's graph."""
    import torch

    class TracedDecoder(torch.nn.Module):
        bias: torch.Tensor
        positions: torch.Tensor
        distances: torch.Tensor | None

        def __init__(self) -> None:
            super().__init__()
            self.model, self.stack = model, model.get_decoder()
            self.own = _attentions(self.stack, "self_attn", "SelfAttention")
            self.cross = _attentions(self.stack, "encoder_attn", "EncDecAttention")
            self.inputs = torch.nn.ModuleList(_together((one.query, one.key, one.value)) for one in self.own)
            self.kind, self.farthest = model.config.model_type, 0
            if self.kind == "t5":
                first = self.own[0].module
                self.farthest = first.relative_attention_max_distance
                self.register_buffer("bias", _bias(first, -torch.arange(self.farthest + 1)).T.contiguous())
            else:
                self.register_buffer("positions", _positions(self.stack.embed_positions, self.kind))

        def traced(self) -> Any:
            instead = {one.module: self.attending(number) for number, one in enumerate(self.own)}
            instead |= {one.module: self.looking_up(number) for number, one in enumerate(self.cross)}
            if self.kind != "t5":
                instead[self.stack.embed_positions] = lambda *_, **_options: self.position
            return _forwards(instead)

        def forward(
            self,
            input_ids: Any,
            seqlens_k: Any,
            total: Any,
            source_seqlens_k: Any,
            source_total: Any,
            past: list[Any],
            ends: list[Any],
            key_positions: list[Any],
        ) -> tuple[Any, ...]:
            self.lengths, self.source_lengths = (seqlens_k, total), (source_seqlens_k, source_total)
            self.past, self.ends, self.present = past, ends, [None] * len(past)
            place = seqlens_k[:, None].to(torch.int64)  # (rows, 1)
            if self.farthest:
                # An input: made of `total`, which lies on the host, they would be copied to a device at every step.
                away = (place - key_positions[0]).clamp(0, self.farthest)  # (rows, total)
                biases = torch.nn.functional.embedding(away, self.bias)  # (rows, total, heads)
                self.distances = biases.transpose(1, 2)[:, :, None]  # (rows, heads, 1, total)
            else:
                self.distances = None
                if self.kind == "m2m_100":  # a padding token has no position
                    place = torch.where(input_ids == self.stack.padding_idx, torch.tensor(0), place + 1)
                self.position = torch.nn.functional.embedding(place, self.positions)
            given = {"input_ids": input_ids}
            if self.kind in _RESHAPING:
                given = {"inputs_embeds": self.stack.embed_tokens(input_ids)}
            # The layers run cross-attention only where there are encoder states; the traced one does not read them.
            hidden = self.stack(**given, encoder_hidden_states=torch.zeros(1, 1, 1), use_cache=False).last_hidden_state
            return _logits(self.model, hidden[:, 0]), *self.present

        def attending(self, number: int) -> Callable[..., Any]:
            def attend(hidden_states: Any, *_: Any, **_options: Any) -> tuple[Any, None]:
                together = [self.inputs[number](hidden_states), None, None]
                return self.attended(self.own[number], 2 * number, together, self.lengths, self.distances), None

            return attend

        def looking_up(self, number: int) -> Callable[..., Any]:
            def attend(hidden_states: Any, *_: Any, **_options: Any) -> tuple[Any, None]:
                query = self.cross[number].query(hidden_states)
                new = [query, *self.ends[2 * number : 2 * number + 2]]
                place = len(self.past) // 2 + 2 * number
                return self.attended(self.cross[number], place, new, self.source_lengths, None), None

            return attend

        def attended(self, attention: _Attention, place: int, new: list[Any], lengths: Any, bias: Any) -> Any:
            past = self.past[place : place + 2]
            unused = [None, None, None] if bias is not None else []  # rotations, positions
            attended, self.present[place], self.present[place + 1] = contrib(
                "GroupQueryAttention",
                [*new, *past, *lengths, *unused, *([bias] if bias is not None else [])],
                like=[self.ends[0], *past],
                num_heads=attention.heads,
                kv_num_heads=attention.heads,
                scale=attention.scale,
                do_rotary=0,
            )
            return attention.output(attended)

    return TracedDecoder().eval()


def _positions(embedding: Any, kind: str) -> Any:
    """The position embeddings of an answer, (positions, d_model); M2M100's table begins with that of padding."""
    if kind == "m2m_100":
        return embedding.weights[embedding.padding_idx :].detach()
    return embedding.weight[embedding.offset if kind == "bart" else 0 :].detach()


def _logits(model: Any, hidden: Any) -> Any:
    """The logits (rows, vocab) of (rows, d_model), as the model's own forward computes them."""
    if model.config.model_type == "t5" and model.config.tie_word_embeddings:
        hidden = hidden * model.model_dim**-0.5
    logits = model.lm_head(hidden)
    bias = getattr(model, "final_logits_bias", None)
    return logits if bias is None or not bias.any() else logits + bias
