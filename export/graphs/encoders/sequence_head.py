"""Sequence head: classifiers that read one token of each row, in a form that every batch can be traced and run in.

BART and its descendants take the hidden state of a row's last end-of-sequence token by a mask, which only works where
all rows have as many of them: a pair of texts beside a single one would fail, or change places. Traced, the head looks
the token up by its index. A decoder that names no padding takes the very last token, which is padding in a batch:
while it is traced, it knows the id that its rows are padded with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from checkpoints.frameworks import exclusive


@contextmanager
def batched_head(model: Any, pad_token_id: int) -> Iterator[None]:
    """Within it, the head of a sequence classifier takes any batch of rows padded with `pad_token_id`."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        yield
    elif model.config.is_encoder_decoder:
        with _reading_the_last_end(model):
            yield
    elif model.config.pad_token_id is None:
        model.config.pad_token_id = pad_token_id
        try:
            yield
        finally:
            model.config.pad_token_id = None
    else:
        yield


@contextmanager
def _reading_the_last_end(model: Any) -> Iterator[None]:
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    def forward(input_ids: Any, attention_mask: Any = None, **_unused: Any) -> Any:
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        places = torch.arange(input_ids.shape[1]) * input_ids.eq(model.config.eos_token_id).to(torch.int64)
        last = places.max(1).values[:, None, None].expand(-1, 1, hidden.shape[-1])
        return SequenceClassifierOutput(logits=model.classification_head(hidden.gather(1, last)[:, 0]))

    with exclusive:
        model.forward = forward
        try:
            yield
        finally:
            del model.forward
