"""Servers: other servers that generate text, with continuous batching. Prompts and answers are token ids.

Each is a script in services/generation/, which finds in its environment what `writers.variables` says, and PEER_PORT.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.load.asker import HOST, Asker
from benchmarks.load.client import request_bytes
from benchmarks.load.generator import Call
from benchmarks.peers.peer import PeerError, Service
from benchmarks.peers.process import started
from benchmarks.peers.writers import PROGRAMS, WriterModel, variables

OPENVINO_GENAI, LLAMA_CPP, VLLM = "openvino-genai", "llama-cpp", "vllm"
Body = Callable[[Sequence[int], int, bool], dict[str, Any]]
"""From a prompt, the number of new tokens, and whether they are streamed: greedy, exactly so many."""


@dataclass(frozen=True, kw_only=True)
class WriterServer(Service):
    """How to ask a server that generates; `tokens` reads the new tokens of an answer that is not streamed."""

    body: Body
    tokens: Callable[[Any], list[int]]

    def call(self, prompt: Sequence[int], new_tokens: int, *, stream: bool) -> Call:
        """A request of the load generator."""
        body = json.dumps(self.body(prompt, new_tokens, stream)).encode()
        return Call(request_bytes(HOST, self.path, body), new_tokens=new_tokens)

    def ask(self, port: int, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The new tokens of one prompt; raises OSError or HTTPException without an answer."""
        asker = Asker(port)
        try:
            body = json.dumps(self.body(prompt, new_tokens, False)).encode()
            return self.tokens(json.loads(asker.ask(self.path, body)))
        finally:
            asker.close()


WRITER_SERVERS = (
    WriterServer(
        name=OPENVINO_GENAI,
        serves="the weights of the GGUF file, OpenVINO GenAI's continuous batching behind aiohttp",
        script=PROGRAMS / "serve_openvino_genai.py",
        path="/generate",
        body=lambda prompt, new_tokens, stream: {"prompt": prompt, "new_tokens": new_tokens, "stream": stream},
        tokens=lambda answer: list(answer["tokens"]),
    ),
    WriterServer(
        name=LLAMA_CPP,
        serves="the GGUF file as it is, llama.cpp's own server, continuous batching in 16 sequences",
        script=PROGRAMS / "serve_llama_cpp.py",
        path="/completion",
        body=lambda prompt, new_tokens, stream: {
            "prompt": prompt,
            "n_predict": new_tokens,
            "ignore_eos": True,
            "samplers": ["top_k"],  # greedy, without the others of the chain
            "top_k": 1,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": stream,
        },
        tokens=lambda answer: list(answer["tokens"]),
        # Worker threads have no permission for AMX tiles on recent kernels, and end with SIGSEGV (llama.cpp#20824).
        building={
            "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF "
            "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF "
            "'-DCMAKE_C_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16' "
            "'-DCMAKE_CXX_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'",
            "LLAMA_CPP_BUILD_JOBS": "2",
        },
    ),
    WriterServer(
        name=VLLM,
        serves="the checkpoint in bf16, vLLM's build for CPUs with its own server, continuous batching",
        script=PROGRAMS / "serve_vllm.py",
        path="/v1/completions",
        body=lambda prompt, new_tokens, stream: {
            "model": "model",
            "prompt": prompt,
            "max_tokens": new_tokens,
            "min_tokens": new_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "return_token_ids": True,
            "stream": stream,
        },
        tokens=lambda answer: list(answer["choices"][0]["token_ids"]),
    ),
)


@contextmanager
def serving(server: WriterServer, model: WriterModel, probe: Sequence[int]) -> Iterator[int]:
    """The port at which a server answers inside the block; raises PeerError where it does not start."""
    if missing := server.missing():
        raise PeerError(missing)

    def answers(port: int) -> None:
        server.ask(port, probe, 2)

    with started(server, variables(server, model), answers) as port:
        yield port
