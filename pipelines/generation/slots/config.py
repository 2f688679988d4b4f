"""Slots: how much is decoded side by side, and how long it may become."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from pipelines.schema import Positive, check_fields


@dataclass(frozen=True)
class SlotsConfig:
    """How many sequences are decoded side by side, and how many tokens, prompt and answer, each may have.

    The KV cache takes at most slots x max_tokens: each slot has memory for the longest sequence that it ever held. A
    prompt is read in chunks of `prefill_chunk_tokens`, a chunk a step: that bounds how long the sequences that are
    being decoded wait for it. (With fewer than three, single tokens would be left over; see slot_table.)

    A sequence that has decoded `turn_tokens` tokens since it got its slot is paused where another request waits that
    has used less: its cache is copied out and back later. So a request waits for about `turn_tokens` steps at most for
    each `slots` requests before it, as long as `max_paused` (None: as many as slots) sequences or fewer are paused;
    their caches take memory beside the slots.
    """

    slots: Positive = 8
    max_tokens: Annotated[int, Meta(ge=2)] = 4096
    prefill_chunk_tokens: Annotated[int, Meta(ge=3)] = 128
    turn_tokens: Positive = 64
    max_paused: Annotated[int, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
