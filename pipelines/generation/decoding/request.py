"""DecodeRequest: a prompt in token ids with its decoding parameters; Step, Generation and Answer: its result."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.stopping import FinishReason, StopCriterion

Cancelled = Callable[[], bool]
"""Called between decoding steps; true once no client waits for the rows."""


def not_cancelled() -> bool:
    """The `Cancelled` of a caller that waits to the end."""
    return False


@dataclass(frozen=True)
class DecodeRequest:
    """One prompt and all that decides its answer; a row of a batch.

    `source` holds the encoder's token ids, none for decoder-only models. `config` is resolved for this prompt.
    `top_tokens` is the number of most likely tokens to report at each step; it and `prompt_logprobs` need `logprobs`.
    """

    prompt: tuple[int, ...]
    config: GenerationConfig
    source: tuple[int, ...] = ()
    seed: int = 0
    stop: StopCriterion | None = None
    logprobs: bool = False
    top_tokens: int = 0
    prompt_logprobs: bool = False

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

    `top` holds the most likely tokens with their logprobs, best first. A sequence's last step has a `finish_reason`.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


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
class Answer:
    """The sequences of a request, best first, and the logprob of each prompt token after the first."""

    generations: tuple[Generation, ...]
    prompt_logprobs: tuple[float, ...] = ()
