"""DecodeRequest: a prompt in token ids with its decoding parameters; Step, Generation and Answer: its result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.guide import Grammar
from pipelines.generation.decoding.stopping import FinishReason, StopCriterion

Cancelled = Callable[[], bool]
"""Called between decoding steps; true once no client waits for the rows."""


def not_cancelled() -> bool:
    """The `Cancelled` of a caller that waits to the end."""
    return False


class CacheKey(NamedTuple):
    """What two requests must have in common before they share the cache of a prefix."""

    source: tuple[int, ...] = ()
    salt: str = ""
    adapter: int = 0


@dataclass(frozen=True)
class DecodeRequest:
    """One prompt and all that decides its answer; a row of a batch.

    `source` holds the encoder's token ids, none for decoder-only models. `config` is resolved for this prompt.
    `top_tokens` is the number of most likely tokens to report at each step; it and `prompt_logprobs` need `logprobs`.
    `prompt_top` is the number of most likely tokens to report beside each prompt token, with its rank; None: neither.
    `grammar` is what each sequence of the answer is held to. The prefix cache is shared with requests of the same
    `cache_salt` only. `adapter` is the number of the adapter that changes the model, 0 for none.
    """

    prompt: tuple[int, ...]
    config: GenerationConfig
    source: tuple[int, ...] = ()
    seed: int = 0
    stop: StopCriterion | None = None
    logprobs: bool = False
    top_tokens: int = 0
    prompt_logprobs: bool = False
    prompt_top: int | None = None
    grammar: Grammar | None = None
    cache_salt: str = ""
    adapter: int = 0

    @property
    def cache_key(self) -> CacheKey:
        return CacheKey(self.source, self.cache_salt, self.adapter)

    @property
    def n_tokens(self) -> int:
        """Tokens that the model reads: source and prompt."""
        return len(self.source) + len(self.prompt)

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that the model may generate, all sequences together."""
        return max(0, self.max_length - len(self.prompt)) * self.config.n_sequences

    @property
    def max_length(self) -> int:
        """Prompt and answer together, in tokens."""
        assert self.config.max_length is not None, "the config of a request is resolved"
        return self.config.max_length


@dataclass(frozen=True)
class Step:
    """One generated token. `logprob` is the model's, before penalties and sampling; None without `logprobs`.

    `top` holds the most likely tokens with their logprobs, best first. A sequence's last step has a `finish_reason`,
    its first one says how many tokens of the prompt were in the prefix cache.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Generation:
    """One finished sequence, without its prompt; `finish_reason` is None where decoding was cancelled."""

    steps: tuple[Step, ...]

    @property
    def token_ids(self) -> list[int]:
        return [step.token_id for step in self.steps]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.steps[-1].finish_reason if self.steps else None


@dataclass(frozen=True)
class Ranked:
    """How likely a prompt token was: 1 is the most likely; `top` holds the most likely tokens with their logprobs."""

    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """The sequences of a request, best first, and the logprob of each prompt token after the first.

    `prompt_ranks` are of the same tokens, where the request has `prompt_top`. `first_token_at` is the time of
    `time.perf_counter` at which the first token of any sequence, or the first step of a beam search, was there.
    """

    generations: tuple[Generation, ...]
    prompt_logprobs: tuple[float, ...] = ()
    prompt_ranks: tuple[Ranked, ...] = ()
    first_token_at: float | None = field(default=None, compare=False)


@dataclass
class PromptScores:
    """What an Answer says of the tokens of a prompt, while it is read."""

    logprobs: list[float] = field(default_factory=list)
    ranks: list[Ranked] = field(default_factory=list)
