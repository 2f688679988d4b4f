"""SlotsConfig: how many sequences decode at once, how long each may become, and when a sequence is paused."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from pipelines.schema import Positive, check_fields


@dataclass(frozen=True)
class SlotsConfig:
    """`slots` sequences decode at once, each of at most `max_tokens` tokens, prompt and answer together.

    The KV cache takes at most slots x max_tokens: each slot has memory for the longest sequence that it ever held.
    `prefill_chunk_tokens` bounds the prompt tokens of a round, and so the time that decoding sequences wait for a
    prefill. (Chunks of fewer than three tokens would leave single tokens over; see slot_table.)

    A sequence that has decoded `turn_tokens` tokens since it got its slot is paused where another request waits that
    has used less: its cache is copied out, and back later. A request then waits about `turn_tokens` steps at most for
    each `slots` requests before it, while at most `max_paused` sequences are paused (None: as many as slots). Caches of
    paused sequences take memory beside the slots.

    With `prefix_cache`, a prompt that shares a prefix with the content of a slot skips the prefill of that prefix. All
    callers share this cache: the time to the first token can tell a caller that another prompt has the same prefix.
    With "per_key", callers share it only with those of the same key of the ingress.

    With `lookup_tokens` above 0, up to so many tokens of a sequence that decodes alone are guessed from its own text
    and read in one step (see slots.prompt_lookup). The answer stays what it is without, but for rounding: with int8 or
    int4 weights a choice between near equals may differ.

    With `cuda_graphs`, decode steps on the device `cuda` are captured as CUDA graphs (see slots.device.captured_steps).
    """

    slots: Positive = 8
    max_tokens: Annotated[int, Meta(ge=2)] = 4096
    prefill_chunk_tokens: Annotated[int, Meta(ge=3)] = 128
    turn_tokens: Positive = 64
    max_paused: Annotated[int, Meta(ge=0)] | None = None
    prefix_cache: bool | Literal["per_key"] = True
    lookup_tokens: Annotated[int, Meta(ge=0, le=32)] = 0
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
