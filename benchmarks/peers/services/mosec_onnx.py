"""Mosec with its dynamic batching, one worker on both cores."""

import os
import sys
from typing import Any

from mosec import Server, Worker
from onnx_classifier import OnnxClassifier


class Classifier(Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self._classify = OnnxClassifier(os.environ["PEER_MODEL"])

    def forward(self, data: list[dict[str, Any]]) -> Any:
        return self._classify([one["inputs"] for one in data])


if __name__ == "__main__":
    # Its options are its own command line. The default timeout of 3 s would refuse what waits in the queue.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", os.environ["PEER_PORT"], "--timeout", "60000"]
    server = Server()
    server.append_worker(Classifier, num=1, max_batch_size=8, max_wait_time=10)
    server.run()
