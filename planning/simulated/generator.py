"""GeneratorModel: a replica of a model that writes text: the scheduler of slots, on a simulated engine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from pipelines.generation.slots.config import SlotsConfig
from pipelines.scheduling.scheduler import BatchingConfig, OnBatch, QueueConfig, unreported
from pipelines.scheduling.slots import SlotScheduler
from planning.simulated.engine import DecodeCost, SimulatedEngine, SizedPrompt
from planning.simulated.loop import SimulatedLoop

READ_TOKENS, NEW_TOKENS = 64, 32  # of a measurement
LEAST_S = 1e-6


class SimulatedSlotScheduler(SlotScheduler):
    """The scheduler of slots on a simulated clock."""

    def __init__(
        self, loop: SimulatedLoop, engine: SimulatedEngine, queue: QueueConfig, on_batch: OnBatch, turn_tokens: int
    ) -> None:
        self._simulated = loop
        super().__init__(engine, queue, on_batch, turn_tokens)

    def now(self) -> float:
        return self._simulated.now_s


@dataclass(frozen=True)
class GeneratorModel:
    """A generator. What counts as its latency is the time to the first token; of a beam search, to its answer."""

    cost: DecodeCost
    slots: SlotsConfig = field(default_factory=SlotsConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)

    @property
    def batching(self) -> BatchingConfig:
        """Slots take no batches."""
        return BatchingConfig()

    def scheduler(self, loop: SimulatedLoop, speed: float, on_batch: OnBatch = unreported) -> SimulatedSlotScheduler:
        engine = SimulatedEngine(loop, self.cost, self.slots, speed)
        return SimulatedSlotScheduler(loop, engine, self.queue, on_batch, self.slots.turn_tokens)

    def request(self, rows: int, tokens: int, written: int) -> Sequence[SizedPrompt]:
        longest = self.slots.max_tokens
        read = min(tokens, longest - 1)
        return [SizedPrompt(read, max(1, min(written, longest - read)), self.cost.beams) for _ in range(rows)]

    def seconds(self, rows: int, tokens: int, written: int) -> float:
        full_s = self.cost.round_s(self.slots.slots) / self.slots.slots
        return rows * (tokens * self.cost.prompt_token_s + written * self.cost.beams * full_s)

    def alone_s(self, rows: int, tokens: int, written: int) -> float:
        rounds = written if self.cost.beams > 1 else 1
        return tokens * self.cost.prompt_token_s + rounds * self.cost.round_s(self.cost.beams)

    def answered_at(self, rows: Sequence[SizedPrompt], now_s: float) -> float:
        return now_s if self.cost.beams > 1 else min((one.first_token_at for one in rows), default=now_s)

    def undisturbed_s(self, rows: Sequence[SizedPrompt]) -> None:
        """The engine knows."""


def measure_decoding(pipeline: Any, example: Any, slots: int) -> DecodeCost:
    """What prompts and rounds cost a loaded pipeline on this machine; takes some seconds. `example` is an input."""
    parameters = pipeline.parameters({"do_sample": False})
    ((row, *_), *_) = pipeline.preprocess([pipeline.parse(example)], parameters)
    random, vocabulary = Random(0), max(*row.prompt, *row.source) + 1

    def timed(count: int, new_tokens: int) -> float:
        """Of so many requests at once, none of which has a prefix of another."""
        rows = []
        for _ in range(count):
            read = tuple(random.randrange(vocabulary) for _ in range(READ_TOKENS))
            prompt = row.prompt if row.source else read
            length = len(prompt) + new_tokens
            config = replace(row.config, max_length=length, min_length=length, num_beams=1, num_return_sequences=1)
            rows.append(replace(row, prompt=prompt, source=read if row.source else (), config=config))
        began_at = time.perf_counter()
        pipeline.forward(rows)
        return time.perf_counter() - began_at

    timed(slots, 2)  # the first run allocates
    read_s = timed(slots, 1)
    one_s = max(LEAST_S, (timed(1, NEW_TOKENS) - timed(1, 1)) / (NEW_TOKENS - 1))
    all_s = max(one_s, (timed(slots, NEW_TOKENS) - read_s) / (NEW_TOKENS - 1))
    each_s = (all_s - one_s) / max(1, slots - 1)
    beams = pipeline.generator.defaults.num_beams
    return DecodeCost(read_s / slots / READ_TOKENS, max(LEAST_S, one_s - each_s), each_s, beams)
