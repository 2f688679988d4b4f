"""Decodings: what takes slots of an engine, from the queue to its end: a sample takes one, a beam search many."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from pipelines.generation.decoding.beam_search import BeamSearch
from pipelines.generation.decoding.continuation import Continuation, advance
from pipelines.generation.decoding.request import Cancelled, Generation, Request, Step

T = TypeVar("T")


@dataclass
class Prompt:
    """What the decodings of one request share: it is read once."""

    request: Request
    cancelled: Cancelled
    logits: np.ndarray | None = None
    """After its last token, (1, vocab); None until it was read, and where nobody is to go on from it."""
    logprobs: list[float] = field(default_factory=list)
    followers: "list[Sample]" = field(default_factory=list)
    """Samples that wait until it was read."""


class Decoding(ABC):
    """Nothing but what waits for its outcome may be touched by a thread that is not the engine's."""

    def __init__(self, prompt: Prompt, width: int) -> None:
        self.prompt, self.width = prompt, width
        self.slots: list[int] = []
        """Those it has, `width` of them; the prompt is read into the first one."""

    @property
    @abstractmethod
    def reading(self) -> tuple[Sequence[int], Sequence[int]]:
        """The slots that go on, once the prompt was read, and the token that each of them reads next."""

    @abstractmethod
    def end(self, error: Exception | None = None) -> None:
        """Tell who waits that nothing more comes, or what failed."""


class Sample(Decoding):
    """One sequence, greedy or sampled.

    Its steps are handed over as they are made where it `streams`, else all at the end: whoever is woken for a step
    takes the engine's time.
    """

    def __init__(self, prompt: Prompt, number: int, *, streams: bool = False) -> None:
        super().__init__(prompt, width=1)
        self.continuation = Continuation(prompt.request, number)
        self._outcome: SimpleQueue[tuple[Step, ...] | Exception | None] = SimpleQueue()
        self._streams = streams
        self._steps: list[Step] = []  # that were not handed over yet

    @property
    def reading(self) -> tuple[Sequence[int], Sequence[int]]:
        return self.slots, (self.continuation.last_token,)

    def steps(self) -> Iterator[Step]:
        """Waits for them, to the end, in the thread of whoever asked for them; raises what decoding failed with."""
        for some in arriving(self._outcome):
            yield from some

    def go_on(self, step: Step) -> None:
        """Take the next step."""
        self._steps.append(step)
        if self._streams:
            self._hand_over()

    def end(self, error: Exception | None = None) -> None:
        self._hand_over()
        self._outcome.put(error)

    def _hand_over(self) -> None:
        self._outcome.put(tuple(self._steps))
        self._steps = []


def advance_samples(samples: Sequence[Sample], logits: np.ndarray) -> Iterator[tuple[Sample, Exception | bool]]:
    """Hand a step to each of some samples, from logits (samples, vocab), which may be changed; whether it has ended."""
    for sample, step in zip(samples, advance([one.continuation for one in samples], logits), strict=True):
        if isinstance(step, Exception):
            yield sample, step
        else:
            sample.go_on(step)
            yield sample, step.finish_reason is not None


class Beams(Decoding):
    """A beam search; `outcome` gets its generations at the end, then None, or an error.

    A beam goes on in the slot of the one that it continues. Only where several continue the same one, all but one of
    them take slots whose beams nobody continues, and only what these do not hold yet is copied.
    """

    def __init__(self, prompt: Prompt) -> None:
        super().__init__(prompt, width=prompt.request.config.num_beams)
        self.search = BeamSearch(prompt.request)
        self.begun = False
        self.outcome: SimpleQueue[tuple[Generation, ...] | Exception | None] = SimpleQueue()

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
        if error is None:
            self.outcome.put(self.search.generations())
        self.outcome.put(error)


def arriving(outcome: "SimpleQueue[T | Exception | None]") -> Iterator[T]:
    """What a decoding hands over, to its end; raises what it failed with."""
    while (arrived := outcome.get()) is not None:
        if isinstance(arrived, Exception):
            raise arrived
        yield arrived
