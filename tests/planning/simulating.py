"""The smallest models and traces that a simulation can be checked with."""

import numpy as np

from pipelines.scheduling.batching import CostModel
from pipelines.scheduling.scheduler import BatchingConfig, QueueConfig
from planning.simulated.fleet import Site
from planning.simulated.model import EncoderModel
from planning.simulated.simulation import Setting
from planning.traces.trace import Sizes, Trace, named

PATIENT = QueueConfig(max_queue_s=86_400)
TOKENS_PER_S = 1000.0


def servers(count: int = 1, queue: QueueConfig = PATIENT) -> EncoderModel:
    """A replica of `count` servers without batches: a row of a thousand tokens takes a second, alone or not."""
    one_by_one = BatchingConfig(max_batch_size=1, max_batch_tokens=10**9, concurrency=count)
    return EncoderModel(CostModel(0.0, 1 / TOKENS_PER_S / count), one_by_one, queue, alone=0.0)


def setting(model: EncoderModel, *, site: Site | None = None, overhead_s: float = 0.0, tick_s: float = 1.0) -> Setting:
    return Setting(model, site or Site(start_s=5.0), overhead_s, tick_s)


def constant(rate: float, hours: float, tokens: int, seed: int = 0, deadline_s: float | None = None) -> Trace:
    """Poisson arrivals of equal requests."""
    found = named(f"constant:{rate}", hours, Sizes(lambda n, _: np.full(n, tokens), deadline_s=deadline_s), seed)
    assert found is not None
    return found


def exponential(rate: float, hours: float, mean_tokens: int, seed: int = 0) -> Trace:
    """Poisson arrivals of requests whose work is exponential, in whole tokens."""
    drawn = Sizes(lambda n, s: np.ceil(np.random.default_rng(s).exponential(mean_tokens, n)))
    found = named(f"constant:{rate}", hours, drawn, seed)
    assert found is not None
    return found


def listed(*requests: tuple[float, int], duration_s: float = 100.0) -> Trace:
    """Requests as (arrival in seconds, tokens)."""
    arrivals, tokens = (np.asarray(column) for column in zip(*requests, strict=True))
    return Sizes(lambda n, _: tokens).trace("listed", duration_s, arrivals.astype(float), 0)
