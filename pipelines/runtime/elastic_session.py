"""ElasticSession: one graph on a CPU, for runs on all threads and for concurrent runs on a share of them."""

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Self

import numpy as np

from pipelines.runtime.session import InferenceSession, SessionConfig

FASTER = 0.9
"""All threads are worth it where they take at most this share of the time of a share of the threads."""
RECENT = 3  # runs that are compared: their median forgives one that was held up
PROBE = 64  # runs between two of the session that was slower when it last ran


class ElasticSession:
    """One graph in two sessions: `run` uses `whole` where all threads are faster, else `share`; thread-safe.

    A large batch that runs alone is fastest on all threads. A small one is not, and concurrent batches each run faster
    on their share: threads of one run wait for each other after every operator, threads of different runs do not. On
    two cores two runs of one thread each do 5 to 35% more work than one run of two threads (BERT-base with 128 tokens,
    MiniLM with 16), and two runs of two threads each are slower than either.

    Which session is faster for a lone run depends on its size and on the neighbours of the moment. So the runs
    themselves are timed, by size, and the slower session is tried again now and then: a machine that was busy at the
    start, or becomes busy, decides nothing for good. Threads of `whole` spin between the operators of a run. Where
    neighbours need the cores, that makes `whole` slower, and `share`, whose thread waits for no other, takes over.

    Two sessions hold the weights twice, so `share` is a second one only where it has fewer threads: on a CPU, with
    `threads` and `concurrency` above 1.
    """

    def __init__(self, whole: InferenceSession, share: InferenceSession) -> None:
        self.input_names = whole.input_names
        self.running = 0
        self._whole = whole
        self._share = share
        self._lock = Lock()
        self._begun = 0  # runs so far: one that others joined is not timed
        self._races: defaultdict[int, _Race] = defaultdict(_Race)

    @classmethod
    def open(cls, graph: Path, config: SessionConfig) -> Self:
        """Raises as InferenceSession does."""
        threads = max(1, config.threads // config.concurrency)
        if config.device != "cpu" or threads == config.threads:
            whole = InferenceSession(graph, config)
            return cls(whole, whole)
        whole = InferenceSession(graph, replace(config, spins=True))
        return cls(whole, InferenceSession(graph, replace(config, threads=threads)))

    def warm_up(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Run each session once: the first run of a size allocates its memory."""
        for session in {self._whole, self._share}:
            session.run(feeds)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name, as InferenceSession.run."""
        if self._share is self._whole:
            return self._whole.run(feeds)
        with self._lock:
            race = None if self.running else self._races[_size(feeds)]
            on_all_threads = race is not None and race.on_all_threads()
            self.running += 1
            self._begun += 1
            number = self._begun
        began_at = time.perf_counter()
        try:
            outputs = (self._whole if on_all_threads else self._share).run(feeds)
            seconds = time.perf_counter() - began_at
        finally:
            with self._lock:
                self.running -= 1
        with self._lock:
            if race is not None and number == self._begun:
                race.note(on_all_threads, seconds)
        return outputs


class _Race:
    """The last lone runs of one size, on all threads and on a share of them."""

    def __init__(self) -> None:
        self._seconds: dict[bool, deque[float]] = {whole: deque(maxlen=RECENT) for whole in (True, False)}
        self._runs = 0  # since the slower one was tried

    def on_all_threads(self) -> bool:
        """Whether the next run goes to all threads."""
        for whole, seconds in self._seconds.items():
            if len(seconds) < RECENT:
                return whole
        return self._is_faster != (self._runs >= PROBE)

    def note(self, whole: bool, seconds: float) -> None:
        """A run has ended that no other joined."""
        was_faster = self._is_known and self._is_faster
        self._seconds[whole].append(seconds)
        if not self._is_known or whole == was_faster:
            self._runs += 1
        elif not self._would_win(whole, seconds):  # else it is tried again at once: one run may be luck
            self._runs = 0

    @property
    def _is_known(self) -> bool:
        return all(len(seconds) == RECENT for seconds in self._seconds.values())

    @property
    def _is_faster(self) -> bool:
        return median(self._seconds[True]) <= FASTER * median(self._seconds[False])

    def _would_win(self, whole: bool, seconds: float) -> bool:
        other = median(self._seconds[not whole])
        return seconds <= FASTER * other if whole else FASTER * seconds < other


def _size(feeds: Mapping[str, np.ndarray]) -> int:
    """Runs of equal sizes have token numbers within a factor of two."""
    return int(feeds["input_ids"].size).bit_length()
