"""SlowServer: a TaskServer whose forward takes as long as COST says, most of it asleep.

Replicas of a real model on a small machine share its cores: a second one adds little. These add what a machine of their
own would. All else is real: ingress, queue, batches, answers.

    import_path: benchmarks.suites.scale.slow:build
    args: {task: text-classification, cost: {start_s: 0.06, token_s: 0.0015}}

`cost` is COST where it is absent; `model` names another model of the task.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

import pipelines
from deployments.app import LIFE, costs, on_ending, reserved_gpus
from deployments.config import TaskConfig
from deployments.observability import replica
from deployments.task_server import TaskServer
from pipelines.scheduling.batching import CostModel

COST = CostModel(start_s=0.06, token_s=0.0015)


class SlowServer(TaskServer):
    """Its model sleeps after each forward."""

    def __init__(self, cost: CostModel, *given: Any) -> None:
        super().__init__(*given)
        self._cost = cost

    def _load(self, config: TaskConfig) -> Any:
        with _slowed(self._cost):
            return super()._load(config)


def build(args: dict[str, Any]) -> Application:
    """The application of a slow model: `args: {task: text-classification}`."""
    deployment = serve.deployment(SlowServer, name=args["task"], **LIFE)
    cost = CostModel(**args["cost"]) if args.get("cost") else COST
    given = (args["task"], replica.observe, None, reserved_gpus, on_ending, costs, args.get("model"))
    return deployment.bind(cost, *given)


@contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """What batches of slow models cost is kept in `folder`, not beside the costs of the real ones."""
    before = os.environ.get("SEXTET_CACHE")
    os.environ["SEXTET_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SEXTET_CACHE"]
        else:
            os.environ["SEXTET_CACHE"] = before


@contextmanager
def _slowed(cost: CostModel) -> Iterator[None]:
    """Pipelines that are loaded in the block are slow."""
    load = pipelines.load

    def loaded(*args: Any, **settings: Any) -> Any:
        pipeline = load(*args, **settings)
        pipeline.forward = _sleeping(pipeline.forward, cost)
        return pipeline

    pipelines.load = loaded
    try:
        yield
    finally:
        pipelines.load = load


def _sleeping(forward: Callable[[Sequence[Any]], list[Any]], cost: CostModel) -> Callable[[Sequence[Any]], list[Any]]:
    def run(rows: Sequence[Any]) -> list[Any]:
        ends_at = time.perf_counter() + cost.batch_s(*cost.shape([row.n_tokens for row in rows]))
        outputs = forward(rows)
        time.sleep(max(0.0, ends_at - time.perf_counter()))
        return outputs

    return run
