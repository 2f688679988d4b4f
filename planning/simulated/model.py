"""SimulatedModel: what a replica of one model is: its scheduler, its rows, and what batches cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from pipelines.scheduling.batching import CostModel
from pipelines.scheduling.scheduler import BatchingConfig, OnBatch, QueueConfig, Scheduler, unreported
from planning.simulated.loop import SimulatedLoop
from planning.simulated.scheduler import ALONE, SimulatedScheduler, SizedRow


class SimulatedModel(Protocol):
    """What the fleet asks of a model. `queue` bounds what waits in a replica."""

    @property
    def queue(self) -> QueueConfig: ...

    @property
    def batching(self) -> BatchingConfig: ...

    def scheduler(self, loop: SimulatedLoop, speed: float, on_batch: OnBatch = unreported) -> Scheduler[Any, Any]:
        """The scheduler of one replica, on a machine of that speed."""

    def request(self, rows: int, tokens: int, written: int) -> Sequence[Any]:
        """The rows of a request."""

    def seconds(self, rows: int, tokens: int, written: int) -> float:
        """Of a replica's time that a request takes at least, where batches are as large as pays off."""

    def alone_s(self, rows: int, tokens: int, written: int) -> float:
        """How long a request takes at least in a replica that has nothing else to do."""

    def answered_at(self, rows: Sequence[Any], now_s: float) -> float:
        """When what counts of an answer was there, where it is complete now."""

    def undisturbed_s(self, rows: Sequence[Any]) -> float | None:
        """Seconds that a request takes in an idle replica, if no other comes; None where only a scheduler knows."""


@dataclass(frozen=True)
class EncoderModel:
    """An encoder, whose batches cost what `cost` says. `alone` is an exponent: how much a batch without company gains
    from the threads of the others; 0 for nothing.
    """

    cost: CostModel
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    alone: float = ALONE

    def scheduler(self, loop: SimulatedLoop, speed: float, on_batch: OnBatch = unreported) -> SimulatedScheduler:
        return SimulatedScheduler(loop, self.batching, self.cost, self.queue, speed, on_batch, self.alone)

    def request(self, rows: int, tokens: int, written: int) -> Sequence[SizedRow]:
        return (_row(tokens),) * rows

    def seconds(self, rows: int, tokens: int, written: int) -> float:
        return rows * self.cost.row_s(tokens)

    def alone_s(self, rows: int, tokens: int, written: int) -> float:
        together = min(rows, self.batching.max_batch_size)
        return self.cost.batch_s(together, tokens) * float(self.batching.concurrency ** (1 - self.alone))

    def answered_at(self, rows: Sequence[SizedRow], now_s: float) -> float:
        return now_s

    def undisturbed_s(self, rows: Sequence[SizedRow]) -> float | None:
        if len(rows) != 1 or self.batching.batch_wait_timeout_s:
            return None
        return self.alone_s(1, rows[0].n_tokens, 0)


@cache
def _row(tokens: int) -> SizedRow:
    return SizedRow(tokens)
