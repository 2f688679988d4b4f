"""ElasticSession: one graph on a CPU, for runs on all threads and for concurrent runs on a share of them."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np

from pipelines.runtime.session import InferenceSession, SessionConfig

FASTER = 0.8
"""A row is large where a run on all threads takes at most this share of its time on a share of the threads."""
REPETITIONS = 3


class ElasticSession:
    """One graph in two sessions: `run` uses `whole` for a large batch that runs alone, else `share`; thread-safe.

    A large batch that runs alone is fastest on all threads. A small one is not, and concurrent batches each run faster
    on their share: threads of one run wait for each other after every operator, threads of different runs do not. On
    two cores two runs of one thread each do 5 to 35% more work than one run of two threads (BERT-base with 128 tokens,
    MiniLM with 16), and two runs of two threads each are slower than either.

    Two sessions hold the weights twice, so `share` is a second one only where it has fewer threads: on a CPU, with
    `threads` and `concurrency` above 1.
    """

    def __init__(self, whole: InferenceSession, share: InferenceSession) -> None:
        self.input_names = whole.input_names
        self.running = 0
        self.large_tokens: float = 0
        self._whole = whole
        self._share = share
        self._lock = Lock()

    @classmethod
    def open(cls, graph: Path, config: SessionConfig) -> Self:
        """Raises as InferenceSession does."""
        whole = InferenceSession(graph, config)
        threads = max(1, config.threads // config.concurrency)
        if config.device != "cpu" or threads == config.threads:
            return cls(whole, whole)
        return cls(whole, InferenceSession(graph, replace(config, threads=threads)))

    def calibrate(self, feeds_of: Callable[[int], Mapping[str, np.ndarray]], lengths: Iterable[int]) -> None:
        """Find the first of `lengths`, in tokens, ascending, that is faster on all threads; `feeds_of` makes a row."""
        self.large_tokens = 0
        if self._share is self._whole:
            return
        for n_tokens in lengths:
            feeds = feeds_of(n_tokens)
            if _seconds(self._whole, feeds) <= FASTER * _seconds(self._share, feeds):
                self.large_tokens = n_tokens
                return
        self.large_tokens = math.inf

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name, as InferenceSession.run."""
        with self._lock:
            small = feeds["input_ids"].size < self.large_tokens
            session = self._share if small or self.running else self._whole
            self.running += 1
        try:
            return session.run(feeds)
        finally:
            with self._lock:
                self.running -= 1


def _seconds(session: InferenceSession, feeds: Mapping[str, np.ndarray]) -> float:
    """The fastest of some runs: other load of the machine only adds time."""
    times_s = []
    for _ in range(REPETITIONS + 1):  # the first allocates
        started_at = time.perf_counter()
        session.run(feeds)
        times_s.append(time.perf_counter() - started_at)
    return min(times_s)
