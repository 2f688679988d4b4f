"""Slots: how much is decoded side by side, and how long it may become."""

from dataclasses import dataclass

from pipelines.errors import ConfigurationError


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

    With `prefix_cache`, a prompt that begins like one that a slot holds is read from where they differ. It is shared by
    all callers: the time to the first token can tell one of them that another prompt began alike.
    """

    slots: int = 8
    max_tokens: int = 4096
    prefill_chunk_tokens: int = 128
    turn_tokens: int = 64
    max_paused: int | None = None
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name, least in (("slots", 1), ("max_tokens", 2), ("prefill_chunk_tokens", 3), ("turn_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; allowed: an integer from {least}")
        if self.max_paused is not None and self.max_paused < 0:
            raise ConfigurationError(f"max_paused is {self.max_paused}; allowed: an integer from 0")
