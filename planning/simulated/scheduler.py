"""SimulatedScheduler: the scheduler that serves encoders, on a simulated clock, with batches that take what they cost.

Queue, fairness, admission and the choice of batches are those of pipelines.scheduling. Only the worker threads are
replaced: a batch ends after the seconds that the cost model says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.scheduling.batching import CostModel
from pipelines.scheduling.padded import PaddedScheduler
from pipelines.scheduling.scheduler import BatchingConfig, OnBatch, QueueConfig, unreported
from planning.simulated.loop import SimulatedLoop

ALONE = 0.63
"""A batch that starts while no other runs has all threads of its replica: n threads compute n ** ALONE times as fast as
one (a second one is worth 1.45 to 1.65).
"""


@dataclass(frozen=True, slots=True)
class SizedRow:
    """A row of which only the size is known."""

    n_tokens: int
    max_new_tokens: int = 0


class SimulatedScheduler(PaddedScheduler[SizedRow, None]):
    """`speed` is that of its machine: 2.0 halves all times. `concurrency` batches share it equally."""

    def __init__(
        self,
        loop: SimulatedLoop,
        config: BatchingConfig,
        cost: CostModel,
        queue: QueueConfig,
        speed: float = 1.0,
        on_batch: OnBatch = unreported,
        alone: float = ALONE,
    ) -> None:
        super().__init__(_unused, config, cost, queue, on_batch)
        self._loop = loop
        self._shared = config.concurrency / speed
        self._unshared = config.concurrency ** (1 - alone) / speed

    def now(self) -> float:
        return self._loop.now_s

    def _run(self, batch: Any) -> None:
        factor = self._unshared if len(self._running) == 1 else self._shared
        self._loop.call_later(factor * batch.predicted_s, self._ended, batch, [None] * len(batch.rows))


def _unused(rows: Sequence[SizedRow]) -> list[None]:
    raise AssertionError("a simulated batch runs no model")
