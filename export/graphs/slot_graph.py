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

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import source_positions
from export.graphs.adapter_points import note_points
from export.graphs.graph import save
from export.graphs.slot_attention import Attention, Call, Rotation, attending, describe
from export.graphs.slot_fusions import ROOT_MEAN_SQUARE, fuse
from export.graphs.trace import contrib, trace


def is_slot_graph(model: Any) -> bool:
    """Whether an ONNX model is a slot graph: this one, or one of export.graphs.seq2seq_slot_graph."""
    ports = {one.name for one in (*model.graph.input, *model.graph.output)}
    return bool(ports & {"seqlens_k", "cross_key_values"})


def convert_to_slots(model: Any, graph: Path) -> None:
    """Write the slot graph of a model, fp32. Raises ObstacleError where it cannot have one."""
    import torch

    attention = describe(model)
    decoder = _slot_decoder(model, attention)
    heads, width = attention.kv_heads, attention.width
    caches = [f"{layer}.{part}" for layer in range(attention.layers) for part in ("key", "value")]
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
    inputs = {name: axes.get(name, {}) for name in (*names, *ports[0])}
    outputs = {name: axes[name] for name in ("logits", *ports[1])}
    with _traced(model, decoder, attention) as decoder.new_cache:
        trace(decoder, example, graph, inputs, outputs)
    _fuse(graph, model)


def _slot_decoder(model: Any, attention: Attention) -> Any:
    """The module to trace: the model with its KV cache as plain tensors, and with logits at `logits_at` alone."""
    import torch

    class TracedModel(torch.nn.Module):
        new_cache: Any

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.width = model.get_output_embeddings().weight.shape[1]
            rotations = attention.rotations
            self.rotated: dict[int, Rotation | None] = {} if rotations is None else rotations.layers
            for rotation in {one for one in self.rotated.values() if one is not None}:
                assert rotations is not None
                angles = rotations.tables(rotation, source_positions(model.config) or 0)
                for name, table in zip(_tables(rotation), angles, strict=True):
                    self.register_buffer(name, table)

        def forward(
            self, input_ids: Any, position_ids: Any, seqlens_k: Any, total: Any, logits_at: Any, past: list[Any]
        ) -> tuple[Any, ...]:
            self.lengths, self.past, self.present = (seqlens_k, total), past, [None] * len(past)
            self.logits_at = logits_at
            logits = self.model(
                input_ids=input_ids, position_ids=position_ids, past_key_values=self.new_cache(), use_cache=True
            ).logits
            return logits, *self.present

        def head(self, head: Any, hidden: Any) -> Any:
            """The logits of the wanted tokens, from all hidden states (rows, tokens, width)."""
            return type(head).forward(head, hidden.reshape(-1, self.width)[self.logits_at])

        def attend(self, call: Call) -> Any:
            rows, _, tokens, _ = call.query.shape
            packed = [one.transpose(1, 2).reshape(rows, tokens, -1) for one in (call.query, call.key, call.value)]
            rotation = self.rotated.get(call.layer)
            tables = [] if rotation is None else [getattr(self, name) for name in _tables(rotation)]
            past = self.past[2 * call.layer : 2 * call.layer + 2]
            attended, self.present[2 * call.layer], self.present[2 * call.layer + 1] = contrib(
                "GroupQueryAttention",
                [*packed, *past, *self.lengths, *tables],
                like=[packed[0], *past],
                num_heads=attention.heads,
                kv_num_heads=attention.kv_heads,
                scale=call.scale,
                softcap=call.softcap,
                do_rotary=int(rotation is not None),
                rotary_interleaved=int(rotation is not None and rotation.interleaved),
                local_window_size=-1 if call.window is None else call.window,
            )
            return attended.view(rows, tokens, attention.heads, attention.width)

    return TracedModel().eval()


def _tables(rotation: Rotation) -> tuple[str, str]:
    """The names of the cosines and sines of a rotation."""
    suffix = "" if rotation.rotary == 0 else f"_{rotation.rotary}"
    return f"cos_cache{suffix}", f"sin_cache{suffix}"


@contextmanager
def _traced(model: Any, decoder: Any, attention: Attention) -> Iterator[Any]:
    """Let the model attend, and not rotate, through `decoder`, with logits where they are wanted, and name its norms.

    Yields what makes its KV cache. Afterwards all is as it was.
    """
    norms = {type(one): one for one in model.modules() if type(one).__name__.endswith("RMSNorm")}
    named = {norm: _named(offset) for norm, one in norms.items() if (offset := _offset(one)) is not None}
    before = {norm: norm.forward for norm in named}
    head = model.get_output_embeddings()
    with (
        attending(model, decoder.attend) as new_cache,
        _stacked_repeats(),
        attention.rotations.left_out() if attention.rotations is not None else nullcontext(),
    ):
        for norm, forward in named.items():
            norm.forward = forward
        head.forward = lambda hidden: decoder.head(head, hidden)
        try:
            yield new_cache
        finally:
            del head.forward
            for norm, forward in before.items():
                norm.forward = forward


@contextmanager
def _stacked_repeats() -> Iterator[None]:
    """Trace repeat_interleave, by a number, as a stack: the exporter would keep the shape of the example in it."""
    import torch

    functions: Any = torch
    repeated = functions.repeat_interleave

    def repeat(values: Any, repeats: Any, dim: int | None = None, **options: Any) -> Any:
        if not isinstance(repeats, int) or dim is None:
            return repeated(values, repeats, dim, **options)
        axis = dim % values.ndim
        return torch.stack([values] * repeats, axis + 1).flatten(axis, axis + 1)

    functions.repeat_interleave = functions.Tensor.repeat_interleave = repeat
    try:
        yield
    finally:
        functions.repeat_interleave = repeated
        del functions.Tensor.repeat_interleave  # which inherits its own


def _named(offset: float) -> Any:
    """The forward of a root mean square norm while it is traced."""

    def forward(norm: Any, values: Any) -> Any:
        weight = norm.weight + offset if offset else norm.weight
        epsilon = float(_epsilon(norm))
        return contrib(ROOT_MEAN_SQUARE, [values, weight], like=[values], epsilon=epsilon, axes=values.ndim)[0]

    return forward


def _offset(norm: Any) -> float | None:
    """What a root mean square norm adds to the weight that it scales by: 0, or 1 as Gemma's; None for another norm."""
    import torch

    weight, epsilon = getattr(norm, "weight", None), _epsilon(norm)
    if weight is None or weight.ndim != 1 or epsilon is None:
        return None
    with torch.no_grad():
        values = torch.linspace(-2.0, 1.0, weight.shape[0])[None]
        normalized = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
        scaled = norm(values)
    return next((one for one in (0.0, 1.0) if torch.allclose(scaled, normalized * (weight + one), atol=1e-5)), None)


def _epsilon(norm: Any) -> Any:
    """What it adds to the mean square; None where it names nothing so."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _fuse(graph: Path, model: Any) -> None:
    """Fuse nodes and drop unread inputs: the exporter keeps position_ids where the attention operator rotates.

    Notes where the graph takes adapters of `model`.
    """
    import onnx

    fused = onnx.load(graph)
    fuse(fused)
    read = {name for node in fused.graph.node for name in node.input}
    kept = [one for one in fused.graph.input if one.name in read]
    del fused.graph.input[:]
    fused.graph.input.extend(kept)
    note_points(fused, model)
    save(fused, graph)
