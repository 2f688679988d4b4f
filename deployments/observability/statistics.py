"""Statistics: what the replicas of a model have done since they started, as Triton's clients ask for it.

Each replica counts for itself (metrics.py); the gateway asks all of them and adds up. A replica that has ended takes
its numbers with it, as a model that is loaded anew does in Triton.
"""

from collections.abc import Iterable, Mapping
from typing import Any

TIMES = ("total_s", "queue_s", "tokenization_s", "inference_s")
"""Sums over answered requests."""
NUMBERS = ("answered", "failed", *TIMES, "batches", "rows", "last_at")
NS = 1_000_000_000


def added(replicas: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The numbers of all replicas together; `last_at`, a time in seconds since 1970, is the latest."""
    found = dict.fromkeys(NUMBERS, 0.0)
    for one in replicas:
        for name in NUMBERS:
            value = one.get(name, 0.0)
            found[name] = max(found[name], value) if name == "last_at" else found[name] + value
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
