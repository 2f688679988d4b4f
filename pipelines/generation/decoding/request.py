"""Request: what is asked of an engine, in token ids, and what becomes of it."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.stopping import FinishReason, StopCriterion

Cancelled = Callable[[], bool]
"""Asked between decoding steps: true once nobody waits for the rows in hand any more."""


def never() -> bool:
    """The `Cancelled` of a caller that always waits."""
    return False


@dataclass(frozen=True)
class Request:
    """One prompt to go on from, and everything that decides how; a row of a batch.

    `source` is what an encoder reads first, empty for decoder-only models. `config` is resolved for this prompt.
    `top_tokens` is how many alternatives to report beside each token; it and `prompt_logprobs` need `logprobs`.
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
        """Tokens that the model may write at most, in all sequences together."""
        return max(0, self.max_length - len(self.prompt)) * self.config.n_sequences

    @property
    def max_length(self) -> int:
        """Prompt and answer together, in tokens."""
        assert self.config.max_length is not None, "the config of a request is resolved"
        return self.config.max_length


@dataclass(frozen=True)
class Step:
    """One new token. `logprob` is the model's own, before penalties and sampling; None where nobody asked for it.

    `top` are the most likely tokens and their logprobs, best first. `finish_reason` is set on a sequence's last step.
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
    """What became of a request: its sequences, best first, and the logprob of each prompt token after the first."""

    generations: tuple[Generation, ...]
    prompt_logprobs: tuple[float, ...] = ()
