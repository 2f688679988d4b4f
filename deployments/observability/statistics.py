"""Statistics: what the replicas of a model do and have done, for Triton's clients and for the console's live view.

Each replica counts for itself (metrics.py); the gateway asks all of them and adds up. A replica that has ended takes
its numbers with it, as a model that is loaded anew does in Triton. The numbers of a model's adapters stand beside its
own, named ADAPTER/NUMBER.

A request has failed where the service is at fault: 5xx. What a client did wrong, what was refused for lack of room or
time, and a client that left are no failures. Console, `sextet top`, Triton's `fail` and the alerts count alike.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

TIMES = ("total_s", "queue_s", "tokenization_s", "inference_s")
"""Sums over answered requests."""
NUMBERS = ("answered", "refused", "failed", *TIMES, "batches", "rows", "last_at")
"""What is counted. Of requests: see `outcome_of`."""
NOW = ("replicas", "waiting", "slots", "taken_slots")
"""What is so at the time of asking: replicas, requests that wait, KV cache slots."""
BUCKET = "at_most_"
"""How counts of answered requests are named: so many seconds at most, and more than the next lower name says."""
OK, SERVER_ERROR = "200", "500"
NS = 1_000_000_000


def outcome_of(status: str) -> str:
    """Which of NUMBERS counts a request that has ended with a status of HTTP."""
    return "answered" if status == OK else "failed" if status >= SERVER_ERROR else "refused"


def of_adapter(adapter: str, numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a model's adapter, to stand beside its own; those of the model itself for ""."""
    return {f"{adapter}/{name}" if adapter else name: value for name, value in numbers.items()}


def by_model(numbers: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The numbers of a model itself, under "", and those of each of its adapters, by name."""
    found: dict[str, dict[str, float]] = {"": {}}
    for name, value in numbers.items():
        adapter, _, own = name.rpartition("/")
        found.setdefault(adapter, {})[own] = value
    return found


def added(replicas: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The numbers of all replicas together; `last_at`, a time in seconds since 1970, is the latest."""
    found = dict.fromkeys((*NUMBERS, *NOW), 0.0)
    for one in replicas:
        for name, value in one.items():
            before = found.get(name, 0.0)
            found[name] = max(before, value) if name.endswith("last_at") else before + value
    return found


def model_statistics(name: str, version: str, numbers: Mapping[str, float]) -> dict[str, Any]:
    """One entry of Triton's `model_stats`, in nanoseconds; an inference is a row of a batch, an execution a batch.

    How long requests took that failed is not known, and batches are not told apart by size.
    """
    answered, queue_s, tokenization_s = (numbers[key] for key in ("answered", "queue_s", "tokenization_s"))
    output_s = max(0.0, numbers["total_s"] - queue_s - tokenization_s - numbers["inference_s"])

    def duration(count: float, seconds: float) -> dict[str, int]:
        return {"count": int(count), "ns": int(seconds * NS)}

    return {
        "name": name,
        "version": version,
        "last_inference": int(1000 * numbers["last_at"]),
        "inference_count": int(numbers["rows"]),
        "execution_count": int(numbers["batches"]),
        "inference_stats": {
            "success": duration(answered, numbers["total_s"]),
            "fail": duration(numbers["failed"], 0.0),
            "queue": duration(answered, queue_s),
            "compute_input": duration(answered, tokenization_s),
            "compute_infer": duration(answered, numbers["inference_s"]),
            "compute_output": duration(answered, output_s),
            "cache_hit": duration(0, 0.0),
            "cache_miss": duration(0, 0.0),
        },
        "batch_stats": [],
    }


def live(before: Mapping[str, float], after: Mapping[str, float], elapsed_s: float) -> dict[str, float | None]:
    """What a model did in between: requests a second, the share that failed, p50 and p99 in ms of those that were
    answered, None where nothing was; and its replicas, queue and slots now.
    """

    def grew(name: str) -> float:
        return max(0.0, after.get(name, 0.0) - before.get(name, 0.0))  # a replica may have ended

    names = sorted((float(name.removeprefix(BUCKET)), name) for name in after if name.startswith(BUCKET))
    counts = [
        (bound, count) for (bound, _), count in zip(names, accumulate(grew(name) for _, name in names), strict=True)
    ]
    requests = grew("answered") + grew("refused") + grew("failed")
    p50_s, p99_s = quantile(counts, 0.5), quantile(counts, 0.99)
    return {
        "requests_per_s": requests / elapsed_s,
        "failed": grew("failed") / requests if requests else None,
        "p50_ms": None if p50_s is None else 1000 * p50_s,
        "p99_ms": None if p99_s is None else 1000 * p99_s,
        **{name: after.get(name, 0.0) for name in NOW},
    }


def quantile(counts: Sequence[tuple[float, float]], share: float) -> float | None:
    """As Prometheus' histogram_quantile: cumulative counts by ascending bound; None without any."""
    if not counts or not counts[-1][1]:
        return None
    wanted = share * counts[-1][1]
    place = min(bisect_left([count for _, count in counts], wanted), len(counts) - 1)
    bound, count = counts[place]
    lower, below = counts[place - 1] if place else (0.0, 0.0)
    if bound == math.inf:
        return lower
    return lower + (bound - lower) * ((wanted - below) / (count - below) if count > below else 1.0)
