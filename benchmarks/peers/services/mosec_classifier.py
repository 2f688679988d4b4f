"""Mosec with its dynamic batching: one worker on both cores, or one on each."""

import os
import sys
from pathlib import Path
from typing import Any

from classifier import Classifier, OnnxClassifier, OpenVinoClassifier
from mosec import Server, Worker

BATCH_SIZE = int(os.environ["PEER_BATCH_SIZE"])
MODEL = Path(os.environ["PEER_MODEL"])


class ClassifyingWorker(Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        kind = OpenVinoClassifier if (MODEL / "model.xml").exists() else OnnxClassifier
        self._classify: Classifier = kind(MODEL)

    def forward(self, data: Any) -> Any:
        """One body where the batch size is 1: Mosec then makes no batches."""
        if BATCH_SIZE == 1:
            return self._classify([data["inputs"]])[0]
        return self._classify([one["inputs"] for one in data])


if __name__ == "__main__":
    # Its options are its own command line. The default timeout of 3 s would refuse what waits in the queue.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", os.environ["PEER_PORT"], "--timeout", "60000"]
    server = Server()
    workers = int(os.environ["PEER_WORKERS"])
    server.append_worker(ClassifyingWorker, num=workers, max_batch_size=BATCH_SIZE, max_wait_time=10)
    server.run()
