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
from pathlib import Path
from typing import Any

from checkpoints.frameworks import exclusive
from export.graphs.seq2seq_attention import Layer, Seq2SeqAttention, describe_seq2seq
from export.graphs.trace import contrib, trace

_RESHAPING = ("m2m_100", "mt5", "t5", "umt5")
"""Their decoders reshape ids by their own shape, which a device would ask of the host at every step."""


def convert_seq2seq_to_slots(model: Any, encoder: Path, decoder: Path) -> None:
    """Write both graphs of a model, fp32. Raises ObstacleError where it cannot have them."""
    import torch

    attention = describe_seq2seq(model)
    rows, tokens = 2, 3
    ids = torch.ones(rows, tokens, dtype=torch.int64)
    of_rows, per_token = {0: "rows"}, {0: "rows", 1: "tokens"}
    with exclusive:
        traced_encoder = _encoder(model, attention)
        with traced_encoder.traced():
            trace(
                traced_encoder,
                (ids, torch.ones_like(ids)),
                encoder,
                {"input_ids": per_token, "attention_mask": per_token},
                {"cross_key_values": {1: "rows", 3: "tokens"}},
            )
        parts = [(layer, part) for layer in range(len(attention.own)) for part in ("key", "value")]
        caches = [f"{layer}.{side}.{part}" for side in ("decoder", "encoder") for layer, part in parts]
        heads, width = attention.own[0].heads, attention.own[0].width
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
        if any(bias is not None for bias in attention.biases):
            places.append(torch.arange(tokens))
            inputs["key_positions"] = {0: "total"}
        outputs = {"logits": of_rows} | {f"present.{name}": axes for name, axes in cached.items()}
        traced_decoder = _decoder(model, attention)
        with traced_decoder.traced():
            example = (ids[:, :1], lengths, total, lengths, total, past, ends, places)
            trace(traced_decoder, example, decoder, inputs, outputs)


def _together(layers: Sequence[Any]) -> Any:
    """One linear layer in place of several with the same input: it returns their outputs side by side."""
    import torch

    weight = torch.cat([layer.weight for layer in layers])
    biased = any(layer.bias is not None for layer in layers)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=biased)
    linear.weight = torch.nn.Parameter(weight.detach())
    if biased:
        zeros = [torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
        linear.bias = torch.nn.Parameter(torch.cat(zeros).detach())
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


def _distances(stack: Any, biases: Sequence[Any]) -> list[int | None]:
    """Register each table of biases in a module as `bias_N`; returns the N of each layer, which layers may share."""
    tables: list[Any] = []
    places: list[int | None] = []
    for bias in biases:
        place = next((index for index, one in enumerate(tables) if one is bias), None)
        if bias is not None and place is None:
            place = len(tables)
            tables.append(bias)
            stack.register_buffer(f"bias_{place}", bias.contiguous())
        places.append(place)
    return places


def _encoder(model: Any, attention: Seq2SeqAttention) -> Any:
    """The module to trace as the encoder's graph."""
    import torch

    class TracedEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = model.get_encoder()
            own, cross = attention.encoder, attention.cross
            self.inputs = torch.nn.ModuleList(_together((one.query, one.key, one.value)) for one in own)
            self.heads, self.width = cross[0].heads, cross[0].width
            self.cross = _together([layer for one in cross for layer in (one.key, one.value)])
            self.places = _distances(self, attention.encoder_biases)

        @contextmanager
        def traced(self) -> Iterator[None]:
            with (
                _forwards({one.module: self.attending(number) for number, one in enumerate(attention.encoder)}),
                _unpadded(self.stack),
            ):
                yield

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            rows, tokens = input_ids.shape
            self.mask = attention_mask.to(torch.int32)
            place = torch.arange(tokens)
            self.away = place[None, :] - place[:, None]  # (tokens, tokens)
            self.scores: dict[int, Any] = {}
            hidden = self.stack(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return self.cross(hidden).view(rows, tokens, -1, self.heads, self.width).permute(2, 0, 3, 1, 4)

        def distances(self, place: int | None) -> Any:
            """The scores (1, heads, tokens, tokens) that a table adds; computed once."""
            if place is None:
                return None
            if place not in self.scores:
                table = getattr(self, f"bias_{place}")
                farthest = table.shape[1] // 2
                self.scores[place] = table[:, self.away.clamp(-farthest, farthest) + farthest][None]
            return self.scores[place]

        def attending(self, number: int) -> Callable[..., Any]:
            layer = attention.encoder[number]

            def attend(hidden_states: Any, *_: Any, **_options: Any) -> tuple[Any, ...]:
                query, key, value = self.inputs[number](hidden_states).chunk(3, dim=-1)
                (attended,) = contrib(
                    "MultiHeadAttention",
                    [query, key, value, None, self.mask, self.distances(self.places[number])],
                    like=[query],
                    num_heads=layer.heads,
                    scale=layer.scale,
                )
                return layer.output(attended), *[None] * (layer.outputs - 1)

            return attend

    return TracedEncoder().eval()


@contextmanager
def _unpadded(stack: Any) -> Iterator[None]:
    """Let LED's encoder read texts as they are: it pads them to a multiple of its window, for its own attention."""
    if not hasattr(stack, "_pad_to_window_size"):
        yield
        return

    def as_it_is(input_ids: Any, attention_mask: Any, inputs_embeds: Any, pad_token_id: Any) -> tuple[Any, ...]:
        return 0, input_ids, attention_mask, inputs_embeds

    stack._pad_to_window_size = as_it_is
    try:
        yield
    finally:
        del stack._pad_to_window_size


def _decoder(model: Any, attention: Seq2SeqAttention) -> Any:
    """The module to trace as the decoder's graph."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    class TracedDecoder(torch.nn.Module):
        positions: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model, self.stack = model, model.get_decoder()
            self.inputs = torch.nn.ModuleList(_together((one.query, one.key, one.value)) for one in attention.own)
            by_distance = {id(bias): bias.T for bias in attention.biases if bias is not None}  # (distances, heads)
            self.places = _distances(self, [by_distance.get(id(bias)) for bias in attention.biases])
            self.added = attention.positions
            if self.added is not None:
                padding = [] if self.added.padding is None else [self.added.padding[None]]
                self.register_buffer("positions", torch.cat([*padding, self.added.table]))

        @contextmanager
        def traced(self) -> Iterator[None]:
            instead = {one.module: self.attending(number) for number, one in enumerate(attention.own)}
            instead |= {one.module: self.looking_up(number) for number, one in enumerate(attention.cross)}
            if self.added is not None:
                instead[self.stack.embed_positions] = lambda *_, **_options: self.position
            with _forwards(instead), _without_zero_bias(self.model):
                yield

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
            # An input: made of `total`, which lies on the host, they would be copied to a device at every step.
            self.away: Any = place - key_positions[0] if key_positions else None  # (rows, total)
            self.scores: dict[int, Any] = {}
            if self.added is not None:
                if self.added.padding is not None:  # row 0 of the table is that of a padding token
                    place = torch.where(input_ids == self.added.padding_id, torch.tensor(0), place + 1)
                self.position = torch.nn.functional.embedding(place, self.positions)
            given = {"decoder_input_ids": input_ids}
            if self.model.config.model_type in _RESHAPING:
                given = {"decoder_inputs_embeds": self.stack.embed_tokens(input_ids)}
            # The layers run cross-attention only where there are encoder states; the traced one does not read them.
            nothing = BaseModelOutput(last_hidden_state=torch.zeros(1, 1, 1))
            logits = self.model(**given, encoder_outputs=nothing, use_cache=False).logits
            return logits[:, 0], *self.present

        def distances(self, place: int | None) -> Any:
            """The scores (rows, heads, 1, total) that a table adds; computed once."""
            if place is None:
                return None
            if place not in self.scores:
                table = getattr(self, f"bias_{place}")
                away = self.away.clamp(0, len(table) - 1)
                biases = torch.nn.functional.embedding(away, table)  # (rows, total, heads)
                self.scores[place] = biases.transpose(1, 2)[:, :, None]
            return self.scores[place]

        def attending(self, number: int) -> Callable[..., Any]:
            def attend(hidden_states: Any, *_: Any, **_options: Any) -> tuple[Any, ...]:
                together = [self.inputs[number](hidden_states), None, None]
                bias = self.distances(self.places[number])
                return self.attended(attention.own[number], 2 * number, together, self.lengths, bias)

            return attend

        def looking_up(self, number: int) -> Callable[..., Any]:
            def attend(hidden_states: Any, *_: Any, **_options: Any) -> tuple[Any, ...]:
                query = attention.cross[number].query(hidden_states)
                new = [query, *self.ends[2 * number : 2 * number + 2]]
                place = len(self.past) // 2 + 2 * number
                return self.attended(attention.cross[number], place, new, self.source_lengths, None)

            return attend

        def attended(self, layer: Layer, place: int, new: list[Any], lengths: Any, bias: Any) -> tuple[Any, ...]:
            past = self.past[place : place + 2]
            unused = [None, None, None] if bias is not None else []  # rotations, positions
            attended, self.present[place], self.present[place + 1] = contrib(
                "GroupQueryAttention",
                [*new, *past, *lengths, *unused, *([bias] if bias is not None else [])],
                like=[self.ends[0], *past],
                num_heads=layer.heads,
                kv_num_heads=layer.heads,
                scale=layer.scale,
                do_rotary=0,
            )
            return layer.output(attended), *[None] * (layer.outputs - 1)

    return TracedDecoder().eval()


@contextmanager
def _without_zero_bias(model: Any) -> Iterator[None]:
    """Make one number of a bias of zeros on the logits: ONNX Runtime drops that, and would add a whole vocabulary."""
    import torch

    bias = getattr(model, "final_logits_bias", None)
    if bias is None or bias.any():
        yield
        return
    model.final_logits_bias = torch.zeros(1)
    try:
        yield
    finally:
        model.final_logits_bias = bias
