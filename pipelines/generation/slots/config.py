"""Slots: how much is decoded side by side, and how long it may become."""

from dataclasses import dataclass

from pipelines.errors import ConfigurationError


@dataclass(frozen=True)
class SlotsConfig:
    """How many sequences are decoded side by side, and how many tokens, prompt and answer, each may have.

    The cache takes at most slots x max_tokens: each slot has memory for the longest sequence that it ever held. A
    prompt is read in chunks of `prefill_chunk_tokens`, a chunk a step: that bounds how long the sequences that are
    being decoded wait for it. (With fewer than three, single tokens would be left over; see slot_table.)
    """

    slots: int = 8
    max_tokens: int = 4096
    prefill_chunk_tokens: int = 128

    def __post_init__(self) -> None:
        for name, least in (("slots", 1), ("max_tokens", 2), ("prefill_chunk_tokens", 3)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; allowed: an integer from {least}")
