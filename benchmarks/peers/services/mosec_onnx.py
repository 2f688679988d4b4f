"""Mosec with its dynamic batching, one worker on both cores."""

import os
import sys
from typing import Any

from mosec import Server, Worker
from onnx_classifier import OnnxClassifier

BATCH_SIZE = int(os.environ["PEER_BATCH_SIZE"])


class Classifier(Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self._classify = OnnxClassifier(os.environ["PEER_MODEL"])

    def forward(self, data: Any) -> Any:
        """One body where the batch size is 1: Mosec then makes no batches."""
        if BATCH_SIZE == 1:
            return self._classify([data["inputs"]])[0]
        return self._classify([one["inputs"] for one in data])


if __name__ == "__main__":
    # Its options are its own command line. The default timeout of 3 s would refuse what waits in the queue.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", os.environ["PEER_PORT"], "--timeout", "60000"]
    server = Server()
    server.append_worker(Classifier, num=1, max_batch_size=BATCH_SIZE, max_wait_time=10)
    server.run()
