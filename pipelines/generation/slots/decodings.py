"""Decodings: a sample, which takes one KV cache slot, and a beam search, which takes one for each beam."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.generation.decoding.beam_search import BeamSearch
from pipelines.generation.decoding.guide import Guide
from pipelines.generation.decoding.logits import LogitsProcessor, logits_processors
from pipelines.generation.decoding.request import Answer, DecodeRequest, Generation, PromptScores, Step
from pipelines.generation.decoding.sequence_state import SequenceState, advance_rows
from pipelines.generation.decoding.step_logits import StepLogits
from pipelines.generation.engine import Job, Scheduled, Share, Steps


@dataclass
class SharedPrompt:
    """What the decodings of one request share: the prefill of the prompt, which runs once, and the answer."""

    job: Job
    logits: np.ndarray | None = None
    """Those after the last prompt token, (1, vocab); None before the prefill, and without followers."""
    scores: PromptScores = field(default_factory=PromptScores)
    followers: "list[Sample]" = field(default_factory=list)
    """Samples that wait for the prefill."""
    generations: dict[int, tuple[Generation, ...]] = field(default_factory=dict)
    outstanding: int = 0
    first_token_at: float | None = None
    has_started: bool = False
    has_failed: bool = False

    @property
    def request(self) -> DecodeRequest:
        return self.job.request

    @cached_property
    def processors(self) -> list[LogitsProcessor]:
        """The logits processors of all samples: they hold no state of a sequence."""
        return logits_processors(self.request.config, len(self.request.prompt))

    def cancelled(self) -> bool:
        """Whether no client waits for the rest of the answer."""
        return self.has_failed or self.job.cancelled()

    def start(self) -> None:
        """One of the decodings has its slots."""
        if not self.has_started:
            self.has_started = True
            self.job.put(Scheduled())

    def wrote(self) -> None:
        """One of the decodings has its first token."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()

    def end(self, number: int, generations: tuple[Generation, ...], error: Exception | None) -> None:
        """End one decoding: the last one completes the answer, the first error is reported at once."""
        self.outstanding -= 1
        if self.has_failed:
            return
        if error is not None:
            self.has_failed = True
            self.job.put(error)
            return
        self.generations[number] = generations
        if not self.outstanding:
            found = (one for place in sorted(self.generations) for one in self.generations[place])
            logprobs, ranks = tuple(self.scores.logprobs), tuple(self.scores.ranks)
            self.job.put(Answer(tuple(found), logprobs, ranks, self.first_token_at))


class Decoding(ABC):
    """One entry of the queue; it belongs to the decode thread.

    `slots` are the KV cache slots that it has, `width` of them while it runs; the first one takes the prefill.
    `turn_tokens` counts the steps since it got them, `cached_tokens` those of the prompt that need no prefill. `parked`
    holds the content of its slots while it is paused.

    `open` makes the decoding state when it gets its first slots: thousands may wait.
    """

    def __init__(self, prompt: SharedPrompt, width: int) -> None:
        self.prompt, self.width = prompt, width
        self.number = 0
        self.slots: list[int] = []
        self.turn_tokens = self.cached_tokens = 0
        self.parked: list[tuple[Any, Any]] = []
        prompt.outstanding += 1

    @property
    def share(self) -> Share:
        return self.prompt.job.share

    @abstractmethod
    def open(self) -> None:
        """Make the decoding state."""

    @property
    @abstractmethod
    def reading(self) -> tuple[Sequence[int], Sequence[int]]:
        """The slots that decode after the prefill, and the token that each of them reads next."""

    @property
    def guides(self) -> Sequence[Guide]:
        """The guides whose masks the next token needs."""
        return ()

    @abstractmethod
    def end(self, error: Exception | None = None) -> None:
        """Report the sequences so far, or the error."""


class Sample(Decoding):
    """The `sequence`-th greedy or sampled sequence of a request."""

    state: SequenceState

    def __init__(self, prompt: SharedPrompt, sequence: int) -> None:
        super().__init__(prompt, width=1)
        self._sequence = sequence
        self._steps: list[Step] = []

    def open(self) -> None:
        self.state = SequenceState(self.prompt.request, self._sequence, self.prompt.processors)

    @property
    def reading(self) -> tuple[Sequence[int], Sequence[int]]:
        return self.slots, (self.state.last_token,)

    @property
    def guides(self) -> Sequence[Guide]:
        return () if self.state.guide is None else (self.state.guide,)

    def take(self, step: Step) -> None:
        """Append the next step, and stream it where the client streams."""
        if not self._steps:
            self.prompt.wrote()
            if self.cached_tokens:
                step = replace(step, cached_tokens=self.cached_tokens)
        self._steps.append(step)
        if self.prompt.job.streams and self._sequence == 0:
            self.prompt.job.put(Steps((step,)))

    def end(self, error: Exception | None = None) -> None:
        self.prompt.end(self._sequence, (Generation(tuple(self._steps)),), error)


def advance_samples(
    samples: Sequence[Sample], logits: StepLogits, rows: Sequence[int]
) -> Iterator[tuple[Sample, Exception | bool]]:
    """Advance samples by a token, each from a row of the logits; yields whether each ended."""
    for sample, step in zip(samples, advance_rows([one.state for one in samples], logits, rows), strict=True):
        if isinstance(step, Exception):
            yield sample, step
        else:
            sample.take(step)
            yield sample, step.finish_reason is not None


class Beams(Decoding):
    """A beam search.

    A beam stays in the slot of the beam that it continues. Where several continue the same one, all but one of them
    take the slots of beams that none continues; only tokens that such a slot lacks are copied.
    """

    search: BeamSearch

    def __init__(self, prompt: SharedPrompt) -> None:
        super().__init__(prompt, width=prompt.request.config.num_beams)
        self.is_open = self.begun = False

    def open(self) -> None:
        self.search, self.is_open = BeamSearch(self.prompt.request), True

    @property
    def reading(self) -> tuple[Sequence[int], Sequence[int]]:
        if not self.begun:
            return self.slots[:1], self.prompt.request.prompt[-1:]
        return self.slots, self.search.last_tokens.tolist()

    @property
    def rows(self) -> Sequence[int]:
        """The slot whose logits each beam continues from; before the first step, all beams share one."""
        return self.slots if self.begun else self.slots[:1] * self.width

    def place(self, came_from: np.ndarray) -> tuple[list[int], list[int]]:
        """Give each beam a slot, as it continues `came_from`, (beams,); returns the slots to copy, and where to."""
        parents = [self.rows[beam] for beam in came_from]
        self.begun = True
        unused = [slot for slot in self.slots if slot not in parents]
        placed: list[int] = []
        sources, targets = [], []
        for parent in parents:
            if parent not in placed:
                placed.append(parent)
                continue
            placed.append(unused.pop())
            sources.append(parent)
            targets.append(placed[-1])
        self.slots = placed
        return sources, targets

    def end(self, error: Exception | None = None) -> None:
        self.prompt.end(0, self.search.generations() if error is None and self.is_open else (), error)


def decodings_of(job: Job) -> list[Decoding]:
    """The decodings of a request; all but the first are followers: they wait for its prefill."""
    prompt = SharedPrompt(job)
    if job.request.config.num_beams > 1:
        return [Beams(prompt)]
    first, *prompt.followers = (Sample(prompt, number) for number in range(job.request.config.num_return_sequences))
    return [first, *prompt.followers]
