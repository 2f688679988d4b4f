"""Ray Serve with a transformers pipeline and `@serve.batch`: what people write today."""

import os
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from transformers import pipeline

CPUS = 2
MAX_BATCH_SIZE = 8


@serve.deployment(max_ongoing_requests=128, ray_actor_options={"num_cpus": CPUS})
class Classifier:
    def __init__(self, model: str) -> None:
        torch.set_num_threads(CPUS)
        self._pipeline = pipeline("text-classification", model=model, device="cpu")

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def classify(self, texts: list[str]) -> Any:
        return self._pipeline(texts, batch_size=len(texts), truncation=True)

    async def __call__(self, request: Request) -> Any:
        body = await request.json()
        return await self.classify(body["inputs"])


if __name__ == "__main__":
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])})
    serve.run(Classifier.bind(os.environ["PEER_MODEL"]), blocking=True)  # type: ignore[attr-defined]
