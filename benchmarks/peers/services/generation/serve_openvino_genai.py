"""OpenVINO GenAI's continuous batching behind aiohttp on uvloop: a small server, as fast as it can be made.

One thread adds requests and takes steps. The answer to {"prompt": [ids], "new_tokens", "stream"} is {"tokens": [ids]},
or an event of that form for each step that had tokens. Greedy; the end-of-sequence token does not end an answer.
"""

import asyncio
import json
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import openvino_genai
import uvloop
from aiohttp import web

CACHE_GIB = 2
MOST_SEQUENCES = 64

Tell = Callable[[list[int] | None], None]
"""Takes new tokens, and None when the answer is whole."""


class Generator:
    """A pipeline, and the thread that runs it."""

    def __init__(self, model: str, threads: int) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = CACHE_GIB
        scheduling.max_num_seqs = MOST_SEQUENCES
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduling, "CPU", properties)
        self.waiting: queue.SimpleQueue[tuple[list[int], int, Tell]] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until the process ends."""
        inside: dict[int, tuple[Any, Tell]] = {}
        number = 0
        while True:
            while not inside or not self.waiting.empty():
                prompt, new_tokens, tell = self.waiting.get()
                config = openvino_genai.GenerationConfig()
                config.max_new_tokens = config.min_new_tokens = new_tokens
                config.ignore_eos, config.do_sample = True, False
                number += 1
                ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
                inside[number] = self._pipeline.add_request(number, ids, config), tell
            self._pipeline.step()
            for key, (handle, tell) in list(inside.items()):
                if handle.can_read():
                    for output in handle.read().values():
                        tell(list(output.generated_ids))
                if handle.get_status() != openvino_genai.GenerationStatus.RUNNING and not handle.can_read():
                    tell(None)
                    del inside[key]


def application(generator: Generator) -> web.Application:
    async def generate(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[list[int] | None] = asyncio.Queue()

        def tell(piece: list[int] | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        generator.waiting.put((asked["prompt"], asked["new_tokens"], tell))
        if not asked["stream"]:
            tokens: list[int] = []
            while (piece := await pieces.get()) is not None:
                tokens += piece
            return web.json_response({"tokens": tokens})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while (piece := await pieces.get()) is not None:
            await response.write(f"data: {json.dumps({'tokens': piece})}\n\n".encode())
        await response.write_eof()
        return response

    made = web.Application()
    made.router.add_post("/generate", generate)
    return made


if __name__ == "__main__":
    loaded = Generator(os.environ["PEER_GGUF"], int(os.environ["PEER_THREADS"]))
    threading.Thread(target=loaded.run, daemon=True).start()
    uvloop.install()
    web.run_app(application(loaded), host="127.0.0.1", port=int(os.environ["PEER_PORT"]), print=None, access_log=None)
