"""PyTorch and transformers behind aiohttp on uvloop, with dynamic batches: a small server, as fast as it can be made.

Texts are tokenized in threads, batches are made of whatever waits, and the forward has a thread of its own: fp16 with
SDPA on CUDA, compiled by torch.compile where PEER_COMPILE is 1. A request is {"inputs": text or list}, on any path.
"""

import asyncio
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import uvloop
from aiohttp import web
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DEVICE = os.environ["PEER_DEVICE"]
MOST_ROWS = int(os.environ["PEER_BATCH_SIZE"])
TOKENIZERS = 4
BODY_BYTES = 16 * 2**20
WARM_UP = (1, MOST_ROWS)  # rows of the first forwards, of LONGEST tokens: torch.compile works in them
LONGEST = 128

Waiting = tuple[list[list[int]], "asyncio.Future[list[dict[str, Any]]]"]


class Classifier:
    """A model, and the thread that runs it."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = torch.float32 if DEVICE == "cpu" else torch.float16
        loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self.model = loaded.to(DEVICE).eval()
        self._forward = torch.compile(self.model, dynamic=True) if os.environ.get("PEER_COMPILE") == "1" else self.model
        self.waiting: queue.SimpleQueue[Waiting] = queue.SimpleQueue()
        for rows in WARM_UP:
            self.run([[self.tokenizer.pad_token_id] * LONGEST] * rows)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, truncation=True).input_ids
        return ids

    def run(self, rows: list[list[int]]) -> list[dict[str, Any]]:
        """The best label of each row."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        if DEVICE != "cpu":
            ids, mask = (one.pin_memory().to(DEVICE, non_blocking=True) for one in (ids, mask))
        with torch.inference_mode():
            logits = self._forward(input_ids=ids, attention_mask=mask).logits
            scores, labels = logits.float().softmax(-1).max(-1)
        names = self.model.config.id2label
        return [
            {"label": names[label], "score": score}
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]

    def serve(self) -> None:
        """Run batches of whole requests, until the process ends."""
        while True:
            taken = [self.waiting.get()]
            while sum(len(rows) for rows, _ in taken) < MOST_ROWS:
                try:
                    taken.append(self.waiting.get_nowait())
                except queue.Empty:
                    break
            answers = iter(self.run([row for rows, _ in taken for row in rows]))
            for rows, answered in taken:
                found = [next(answers) for _ in rows]
                answered.get_loop().call_soon_threadsafe(answered.set_result, found)


def application(classifier: Classifier) -> web.Application:
    pool = ThreadPoolExecutor(TOKENIZERS)

    async def classify(request: web.Request) -> web.Response:
        inputs = (await request.json())["inputs"]
        loop = asyncio.get_running_loop()
        texts = inputs if isinstance(inputs, list) else [inputs]
        rows = await loop.run_in_executor(pool, classifier.tokenize, texts)
        answered: asyncio.Future[list[dict[str, Any]]] = loop.create_future()
        classifier.waiting.put((rows, answered))
        return web.json_response(await answered)

    made = web.Application(client_max_size=BODY_BYTES)
    made.router.add_post("/{path:.*}", classify)
    return made


if __name__ == "__main__":
    loaded = Classifier(os.environ["PEER_MODEL"])
    threading.Thread(target=loaded.serve, daemon=True).start()
    uvloop.install()
    web.run_app(application(loaded), host="127.0.0.1", port=int(os.environ["PEER_PORT"]), print=None, access_log=None)
