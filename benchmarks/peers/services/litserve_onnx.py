"""LitServe with its dynamic batching, one worker on both cores."""

import os
from pathlib import Path
from typing import Any

import litserve
from classifier import OnnxClassifier


class ClassifierApi(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self._classify = OnnxClassifier(Path(os.environ["PEER_MODEL"]))

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["inputs"])

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, texts: list[str] | str) -> Any:
        """A text alone where `max_batch_size` is 1: LitServe then makes no batches."""
        return self._classify([texts])[0] if isinstance(texts, str) else self._classify(texts)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = ClassifierApi(max_batch_size=int(os.environ["PEER_BATCH_SIZE"]), batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), generate_client_file=False, log_level="warning")
