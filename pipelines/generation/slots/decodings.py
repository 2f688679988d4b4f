"""Decodings: what takes slots of an engine, from the queue to its end: a sample takes one, a beam search several."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.generation.decoding.beam_search import BeamSearch
from pipelines.generation.decoding.request import Answer, DecodeRequest, Generation, Step
from pipelines.generation.decoding.sequence_state import SequenceState, advance
from pipelines.generation.engine import Job, Scheduled, Share, Steps


@dataclass
class SharedPrompt:
    """What the decodings of one request share: the prompt is read once, and the answer is put together here."""

    job: Job
    logits: np.ndarray | None = None
    """After its last token, (1, vocab); None until it was read, and where nobody is to go on from it."""
    logprobs: list[float] = field(default_factory=list)
    followers: "list[Sample]" = field(default_factory=list)
    """Samples that wait until it was read."""
    generations: dict[int, tuple[Generation, ...]] = field(default_factory=dict)
    outstanding: int = 0
    has_started: bool = False
    has_failed: bool = False

    @property
    def request(self) -> DecodeRequest:
        return self.job.request

    def cancelled(self) -> bool:
        """Whether nobody waits for what is left of it."""
        return self.has_failed or self.job.cancelled()

    def start(self) -> None:
        """A decoding of it got slots."""
        if not self.has_started:
            self.has_started = True
            self.job.put(Scheduled())

    def end(self, number: int, generations: tuple[Generation, ...], error: Exception | None) -> None:
        """One decoding is over; the answer goes out with the last one, the first error at once."""
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
            self.job.put(Answer(tuple(found), tuple(self.logprobs)))


class Decoding(ABC):
    """Belongs to the decode thread.

    `slots` are those it has, `width` of them while it runs; the prompt is read into the first one. `turn_tokens` counts
    the steps since it got them. `parked` is the content of its slots while it is paused.
    """

    def __init__(self, prompt: SharedPrompt, width: int) -> None:
        self.prompt, self.width = prompt, width
        self.number = 0
        self.slots: list[int] = []
        self.turn_tokens = 0
        self.parked: list[tuple[Any, Any]] = []
        prompt.outstanding += 1

    @property
    def share(self) -> Share:
        return self.prompt.job.share

    @property
    @abstractmethod
    def reading(self) -> tuple[Sequence[int], Sequence[int]]:
        """The slots that go on, once the prompt was read, and the token that each of them reads next."""

    @abstractmethod
    def end(self, error: Exception | None = None) -> None:
        """Hand over what there is, or what failed."""


class Sample(Decoding):
    """The `sequence`-th greedy or sampled sequence of a request."""

    def __init__(self, prompt: SharedPrompt, sequence: int) -> None:
        super().__init__(prompt, width=1)
        self.state = SequenceState(prompt.request, sequence)
        self._sequence = sequence
        self._steps: list[Step] = []

    @property
    def reading(self) -> tuple[Sequence[int], Sequence[int]]:
        return self.slots, (self.state.last_token,)

    def take(self, step: Step) -> None:
        """The next step."""
        self._steps.append(step)
        if self.prompt.job.streams and self._sequence == 0:
            self.prompt.job.put(Steps((step,)))

    def end(self, error: Exception | None = None) -> None:
        self.prompt.end(self._sequence, (Generation(tuple(self._steps)),), error)


def advance_samples(samples: Sequence[Sample], logits: np.ndarray) -> Iterator[tuple[Sample, Exception | bool]]:
    """Hand a step to each of some samples, from logits (samples, vocab), which may be changed; whether it has ended."""
    for sample, step in zip(samples, advance([one.state for one in samples], logits), strict=True):
        if isinstance(step, Exception):
            yield sample, step
        else:
            sample.take(step)
            yield sample, step.finish_reason is not None


class Beams(Decoding):
    """A beam search.

    A beam goes on in the slot of the one that it continues. Only where several continue the same one, all but one of
    them take slots whose beams nobody continues, and only what these do not hold yet is copied.
    """

    def __init__(self, prompt: SharedPrompt) -> None:
        super().__init__(prompt, width=prompt.request.config.num_beams)
        self.search = BeamSearch(prompt.request)
        self.begun = False

    @property
    def reading(self) -> tuple[Sequence[int], Sequence[int]]:
        if not self.begun:
            return self.slots[:1], self.prompt.request.prompt[-1:]
        return self.slots, self.search.last_tokens.tolist()

    @property
    def rows(self) -> Sequence[int]:
        """The slots whose logits tell how each beam goes on; before the first step, all beams are one."""
        return self.slots if self.begun else self.slots[:1] * self.width

    def place(self, came_from: np.ndarray) -> tuple[list[int], list[int]]:
        """Give each beam, that goes on from one of those before, a slot: those to copy, and where to."""
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
        self.prompt.end(0, () if error is not None else self.search.generations(), error)


def decodings_of(job: Job) -> list[Decoding]:
    """What decodes a request; all but the first follow it: they wait until it has read the prompt."""
    prompt = SharedPrompt(job)
    if job.request.config.num_beams > 1:
        return [Beams(prompt)]
    first, *prompt.followers = (Sample(prompt, number) for number in range(job.request.config.num_return_sequences))
    return [first, *prompt.followers]
