"""Pace: how fast the workers of a scheduler are, by the batches that have ended.

    predicted seconds    what the cost model says of a batch, fixed cost included
    work                 what it says of the rows alone: the unit of the queue
    real seconds         from the start of a batch until its worker is free for another one

Single batches are no measure: on a busy machine one takes five times as long as the next, and an ingress that follows
each of them lets everybody in, then nobody. So what counts is sums over the last batches, the older the less.
"""

from dataclasses import dataclass

from pipelines.scheduling.batching import SATURATED

MEMORY = 0.95
"""What a batch still counts after the next one: the last twenty decide."""
BATCH_MEMORY = 0.8
KNOWN = 5
"""What was known before the first batch counts as so many of its size."""


@dataclass
class _Ratio:
    """Real seconds over others, of the last batches."""

    real_s: float = 0.0
    other_s: float = 0.0

    def start(self, value: float, other_s: float) -> None:
        """Believe in `value` as after `other_s` of batches; does nothing where something is known."""
        if self.value is None:
            self.real_s, self.other_s = value * other_s, other_s

    def note(self, real_s: float, other_s: float) -> None:
        self.real_s = MEMORY * self.real_s + real_s
        self.other_s = MEMORY * self.other_s + other_s

    @property
    def value(self) -> float | None:
        return self.real_s / self.other_s if self.other_s else None


class Pace:
    """Makes real seconds of what a cost model predicts."""

    def __init__(self, *, measured: bool) -> None:
        """`measured`: the cost model is in seconds of this machine; until a batch has ended it counts as it is."""
        self.batch_s = 0.0
        """Moving average of the real seconds of a batch."""
        self._measured = measured
        self._batches, self._full = _Ratio(), _Ratio()

    @property
    def drift(self) -> float | None:
        """Real over predicted seconds; None where nobody knows."""
        return (1.0 if self._measured else None) if self._batches.value is None else self._batches.value

    def until_done_s(self, work_s: float, running_s: float) -> float:
        """Real seconds of one worker for `work_s` that waits, and for running batches of `running_s` in all, which
        count half: their mean remainder; 0.0 where nobody knows.

        What waits goes as fast as in batches that left rows behind.
        """
        if self.drift is None:
            return 0.0
        per_work = self.drift / (1 - SATURATED) if self._full.value is None else self._full.value
        return per_work * work_s + self.drift * running_s / 2

    def note(self, real_s: float, predicted_s: float, work_s: float, *, is_full: bool) -> None:
        """A batch has ended; `is_full`: rows waited that it did not take."""
        self.batch_s = BATCH_MEMORY * self.batch_s + (1 - BATCH_MEMORY) * real_s
        if self.drift is not None:
            self._batches.start(self.drift, KNOWN * predicted_s)
            if is_full:
                self._full.start(self.drift / (1 - SATURATED), KNOWN * work_s)
        self._batches.note(real_s, predicted_s)
        if is_full:
            self._full.note(real_s, work_s)

    def refitted(self) -> None:
        """The cost model now says of the last batches what they took."""
        self._batches.other_s = self._batches.real_s
        self._full.other_s = (1 - SATURATED) * self._full.real_s
