"""Zero: a hundred requests at once to a model that is asleep.

    zero_lost               how many of them were not answered with 200
    zero_first_answer_s     from sending them to the first answer

The sentiment model of the shipped cluster.yaml has min_replicas: 0. Before each repetition it has no replica; its
artifact and the costs of its batches are known on the machine, as after an earlier start.
"""

import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from time import perf_counter

from benchmarks import Say
from benchmarks.load.client import Exchange, Pool, request_bytes
from benchmarks.suites.cluster import CLASSIFY, Running, measured_cluster, running
from benchmarks.suites.generation import artifact_of
from benchmarks.suites.scale.fleet import SAMPLE_S, Fleet
from benchmarks.suites.suite import Findings
from deployments.scaling.options import AUTOSCALER
from pipelines.errors import SextetError

N_REQUESTS = 100
REPETITIONS = 5
IDLE_S = 2.0
PATIENCE_S = 90.0


def measure_zero(findings: Findings, quick: bool, say: Say) -> None:
    """Note its figures; raises SextetError."""
    content = measured_cluster({CLASSIFY.name: artifact_of(CLASSIFY, say)}, gateway=True)
    deployment = content["applications"][0]["deployments"][0]
    deployment.pop("num_replicas")
    policy = {"policy_function": AUTOSCALER, "policy_kwargs": {"slo_ms": 1000, "zero_after_s": IDLE_S}}
    deployment["autoscaling_config"] = {"min_replicas": 0, "max_replicas": 1, "policy": policy}
    with tempfile.TemporaryDirectory(prefix="sextet-scale-") as folder, running(content, Path(folder)) as served:
        fleet = Fleet(served.process_id, [CLASSIFY.name])
        asyncio.run(_ask_at_once(served, 1))  # costs are measured once on a machine
        for _ in range(1 if quick else REPETITIONS):
            _wait_until_asleep(fleet)
            exchanges = asyncio.run(_ask_at_once(served, N_REQUESTS))
            statuses = Counter(one.status for one in exchanges)
            answered = [one.latency_s for one in exchanges if one.succeeded]
            say(f"{dict(statuses)}, after {', '.join(f'{one:.1f} s' for one in sorted(answered)[:: N_REQUESTS - 1])}")
            findings.note(
                zero_lost=float(N_REQUESTS - len(answered)),
                zero_first_answer_s=min(answered, default=PATIENCE_S),
                zero_last_answer_s=max(answered, default=PATIENCE_S),
            )


async def _ask_at_once(served: Running, n: int) -> list[Exchange]:
    """So many requests, all sent before one is answered."""
    exchanges: list[Exchange] = []
    pool = Pool("127.0.0.1", served.port)
    await pool.open(n)
    body = json.dumps({"inputs": "The acting was wonderful."}).encode()
    request, began_at = request_bytes("127.0.0.1", f"/{CLASSIFY.name}", body), perf_counter()
    for _ in range(n):
        pool.send(Exchange(request, began_at, exchanges.append))
    while pool.in_flight:
        pool.expire(PATIENCE_S)
        await asyncio.sleep(0.02)
    await pool.close()
    return exchanges


def _wait_until_asleep(fleet: Fleet) -> None:
    give_up_at = perf_counter() + PATIENCE_S
    while sum(fleet.count().values()):
        if perf_counter() > give_up_at:
            raise SextetError(f"{CLASSIFY.name} still has a replica after {PATIENCE_S:.0f} s without a request")
        time.sleep(SAMPLE_S)
