"""Fuzz: hostile requests of every protocol, from the OpenAPI document, from mutated examples, and below HTTP.

A request is answered, or its connection is closed, whatever it holds: a 5xx or a hang is a fault of ours. Bodies have a
deadline, so that what is accepted by chance (generations above all) ends.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import quote

import uvloop

from benchmarks.load.client import TIMEOUT, Exchange, Pool, request_bytes
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact, positions

HOST = "127.0.0.1"
CLIENTS = 32
HANG_S = 20.0
DEADLINE = {"x-request-timeout-seconds": "2"}
BUSY, BUSY_S, BUSY_TRIES = "429", 0.1, 20
TICK_S = 0.2
KEPT = 20  # faults whose requests a result keeps
KEPT_BYTES = 2000  # of each
HOSTILE: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        2**31,
        2**63,
        -(2**63) - 1,
        10**400,
        1e308,
        -0.0,
        0.1,
        "",
        " ",
        "\x00",
        "\ud800",
        "\ufdfa" * 3000,
    ),
    *(
        "a" * 5000,
        "\u200b" * 2000,
        "𝔘" * 1000,
        "<|im_end|>" * 200,
        "../../etc/passwd",
        "${jndi:ldap://x}",
        "%s%n",
        "NaN",
    ),
    *([], {}, [[]], [None], [{}], [[[[[[]]]]]], {"": ""}, {"inputs": {"inputs": {}}}, ["a"] * 2000, [[1, 2]] * 2000),
)
GOOD: dict[str, Any] = {
    "/infer": {"id": "1", "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Some text."]}]},
    "/predict": {"inputs": ["Some text."], "raw_scores": False},
    "/chat/completions": {"model": "sextet", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    "/completions": {"model": "sextet", "prompt": "Once", "max_tokens": 4, "stop": ["x"], "n": 1, "stream": False},
    "/v1/rerank": {"query": "Who?", "documents": ["Some text.", {"text": "More."}], "top_n": 1},
    "/rerank": {"query": "Who?", "texts": ["Some text.", "More."], "raw_scores": True, "return_text": True},
}
"""A body for each protocol whose schema has no example, by the end of its paths."""
RAW = (
    b"",
    b"\r\n\r\n",
    b"\x00" * 1000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET * HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /\r\n\r\n",
    b"BREW / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET //..//..%2f..%00 HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(500)) + b"\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 70_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nx\x00y: \x80\xff\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: a\r\n\r\n",
    b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n{}",
    b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST PATH HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST PATH HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    b"POST PATH HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}GET / HTTP/1.1\r\n\r\n",
    b"POST PATH HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
)
"""Requests below HTTP, or barely above; PATH is a task's."""


@dataclass
class Fuzzed:
    """What came of the requests, by status or reason. `faults` are 5xx and hangs, with what was sent."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, str]] = field(default_factory=list)
    n_faults: int = 0

    def note(self, outcome: str, request: bytes) -> None:
        self.outcomes[outcome] += 1
        if outcome == TIMEOUT or (outcome.isdecimal() and outcome >= "500"):
            self.n_faults += 1
            if len(self.faults) < KEPT:
                self.faults.append({"outcome": outcome, "request": request[:KEPT_BYTES].decode("latin-1")})


def fuzz(port: int, requests: Iterator[bytes], below: Sequence[bytes]) -> Fuzzed:
    """Send all `requests` over kept connections, and those `below` HTTP each over its own."""
    return uvloop.run(_fuzz(port, requests, below))


def bodies_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A good body for each path that takes a POST: the document's example, or one of the path's protocol."""
    bodies = {}
    for path, operations in document["paths"].items():
        if "post" in operations:
            content = operations["post"]["requestBody"]["content"]["application/json"]
            known = (body for ending, body in GOOD.items() if path.endswith(ending))
            bodies[path] = content.get("example") or next(known)
    return bodies


def filling(user_config: Mapping[str, Any], text: str, most_tokens: int) -> bytes:
    """A request that fills three quarters of every KV cache slot, or more. Their memory is resident from then on."""
    artifact = ModelArtifact.open(Path(user_config["model"]))
    tokens = min(most_tokens, positions(artifact.config(), ("max_position_embeddings",)) or most_tokens)
    slots, repeated, new_tokens = user_config["slots"].get("slots", SlotsConfig().slots), 1, tokens * 3 // 4
    if "decoder" in artifact.manifest.graphs:  # beside the answer a slot holds the source
        repeated, new_tokens = tokens // 10, tokens - 1
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    return json.dumps({"inputs": [" ".join([text] * repeated)] * slots, "parameters": lengths}).encode()


def mutated(document: Mapping[str, Any], examples: Mapping[str, Any], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` requests to the paths of `examples` (path -> a good body) and of the document, each spoilt somewhere."""
    dice = random.Random(seed)
    paths, pages = list(examples), [path for path, operations in document["paths"].items() if "get" in operations]
    for _ in range(count):
        path = dice.choice(paths)
        body = json.dumps(_spoilt(examples[path], dice)).encode()
        headers = dict(DEADLINE)
        match dice.randrange(12):
            case 0:
                body = body[: dice.randrange(len(body) + 1)]
            case 1:
                body = bytes(byte ^ (1 << dice.randrange(8)) if dice.random() < 0.02 else byte for byte in body)
            case 2:
                headers["content-type"] = dice.choice(
                    ["text/plain", "", "application/octet-stream", "multipart/form-data"]
                )
            case 3:
                headers[dice.choice(["accept", "content-encoding", "x-request-timeout-seconds", "x-request-id"])] = (
                    dice.choice(["text/event-stream", "gzip", "nan", "-1", "1e400", "a" * 3000, "\xff\xfe"])
                )
            case 4:
                path += dice.choice(["/", "//", "/..", "/%00", "?a=b", "/v1/x", "/v2/models/x/infer", "/" + "a" * 3000])
            case 5:
                path = dice.choice(pages).replace("{task}", dice.choice(["x", "..", "%2e%2e", "a" * 300]))
            case 6:
                body = body.replace(b"{", b'{"inputs":1,"inputs":', 1) if dice.random() < 0.5 else b"[" * 100_000
        yield request_bytes(HOST, path, body, headers)


def described(document: Mapping[str, Any], count: int) -> Iterator[bytes]:
    """About `count` requests that schemathesis draws from the document, bodies that it calls wrong among them."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    drawn: list[bytes] = []
    schema = schemathesis.openapi.from_dict(dict(document))
    operations = [schema[path][method] for path in schema for method in schema[path] if method == "post"]
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=max(1, count // (2 * len(operations))),
                phases=[Phase.generate],
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                derandomize=True,
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def draw(case: Any) -> None:
                prepared = case.as_transport_kwargs(base_url="http://127.0.0.1")
                body = json.dumps(prepared["json"]).encode() if "json" in prepared else prepared.get("data") or b""
                path = quote(case.formatted_path, safe="/%")
                drawn.append(request_bytes(HOST, path, body if isinstance(body, bytes) else b"", DEADLINE))

            draw()
    yield from drawn


def _spoilt(body: Any, dice: random.Random) -> Any:
    """A copy of a JSON value with one of its places changed."""
    if not isinstance(body, dict | list) or not body or dice.random() < 0.15:
        return dice.choice(HOSTILE)
    if isinstance(body, list):
        place = dice.randrange(len(body))
        return [_spoilt(value, dice) if index == place else value for index, value in enumerate(body)]
    name = dice.choice(list(body))
    if dice.random() < 0.2:
        return {**body, dice.choice(["x", "stream", "parameters", "n", "model", "id", "\x00"]): dice.choice(HOSTILE)}
    return {**body, name: _spoilt(body[name], dice)}


async def _fuzz(port: int, requests: Iterator[bytes], below: Sequence[bytes]) -> Fuzzed:
    fuzzed, pool, slots = Fuzzed(), Pool(HOST, port), asyncio.Semaphore(CLIENTS)

    def noted(request: bytes, tries: int) -> Callable[[Exchange], None]:
        def note(exchange: Exchange) -> None:
            if exchange.status == BUSY and tries:  # it was not looked at: others keep the model
                asyncio.get_running_loop().call_later(BUSY_S, send, request, tries - 1)
                return
            fuzzed.note(exchange.status, request)
            slots.release()

        return note

    def send(request: bytes, tries: int) -> None:
        pool.send(Exchange(request, perf_counter(), noted(request, tries)))

    async def expire() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            pool.expire(HANG_S)

    expiring = asyncio.create_task(expire())
    for request in requests:
        await slots.acquire()
        send(request, BUSY_TRIES)
    for _ in range(CLIENTS):
        await slots.acquire()
    expiring.cancel()
    await pool.close()
    for request in below:
        fuzzed.note(await _raw(port, request), request)
    return fuzzed


async def _raw(port: int, request: bytes) -> str:
    """The status of the first answer, how the connection ended without one, or TIMEOUT."""
    try:
        async with asyncio.timeout(HANG_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(request)
                if not request.strip():
                    writer.write_eof()
                head = await reader.read(64)
            finally:
                writer.transport.abort()
    except TimeoutError:
        return TIMEOUT
    except OSError:
        return "connection reset"
    return head[9:12].decode("latin-1") if head.startswith(b"HTTP/") else "connection closed"
