"""ElasticSession: one graph for runs that come alone and for runs that come together.

A run that has the replica to itself is fastest on all threads. Of several at once each is better off with its share:
threads of one run wait for each other after every operator, threads of different runs never do. On two cores two runs
of one thread each do 5 to 35% more work than one run of two threads (BERT-base with 128 tokens, MiniLM with 16), and
two runs of two threads each are slower than either.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np

from pipelines.session import InferenceSession, SessionConfig


class ElasticSession:
    """`run` may be called from several threads at once: alone it runs on `whole`, in company on `share`.

    Both are the same graph. It costs memory for its weights twice, so `share` is a second session only where it has
    fewer threads than the first: on a CPU, with `threads` and `concurrency` above 1.
    """

    def __init__(self, whole: InferenceSession, share: InferenceSession) -> None:
        self.input_names = whole.input_names
        self.running = 0
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

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name, as InferenceSession has it."""
        with self._lock:
            session = self._share if self.running else self._whole
            self.running += 1
        try:
            return session.run(feeds)
        finally:
            with self._lock:
                self.running -= 1
