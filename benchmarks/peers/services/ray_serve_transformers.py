"""Ray Serve with a transformers pipeline and `@serve.batch`: what people write today."""

import os
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from transformers import pipeline

CPUS = 2
MAX_BATCH_SIZE = 8  # of what a replica takes at once; PEER_BATCH_SIZE is how many the pipeline pads to one length


@serve.deployment(max_ongoing_requests=128, ray_actor_options={"num_cpus": CPUS})
class Classifier:
    def __init__(self, task: str, model: str, batch_size: int) -> None:
        torch.set_num_threads(CPUS)
        self._pipeline = pipeline(task, model=model, device="cpu", batch_size=batch_size)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def classify(self, texts: list[str]) -> Any:
        return self._pipeline(texts, truncation=True)

    async def __call__(self, request: Request) -> Any:
        body = await request.json()
        return await self.classify(body["inputs"])


if __name__ == "__main__":
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])})
    asked = os.environ["PEER_TASK"], os.environ["PEER_MODEL"], int(os.environ["PEER_BATCH_SIZE"])
    classifier = Classifier.bind(*asked)  # type: ignore[attr-defined]
    serve.run(classifier, blocking=True)
