"""A real HTTP server of a few lines, in a thread: what the load generator is pointed at."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self

Answer = Callable[[Any], Awaitable[bytes]]
"""From a decoded JSON body to the bytes of a whole HTTP response."""


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers])
    return f"{head}\r\n\r\n".encode() + body


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body


class LocalServer:
    """Serves `answer` at http://127.0.0.1:port inside a `with` block."""

    port: int

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listening = threading.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stopped.wait()
        # A connection that was just accepted has a task that makes its handler, which is known once it runs. The server
        # closes after that: asyncio drops a connection that it accepted before, and leaves its socket open.
        while inside := asyncio.all_tasks() - {asyncio.current_task()}:
            for handler in self._connections:
                handler.cancel()
            await asyncio.wait(inside, timeout=0.01)
        server.close()
        for _ in range(3):  # an aborted transport closes its socket in a later turn of the loop
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                writer.write(await self._answer(json.loads(await reader.readexactly(length))))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


async def at_once(_body: Any) -> bytes:
    return response(b"{}")


def one_at_a_time(service_s: float) -> Answer:
    """A server of known capacity: 1 / service_s requests a second, in the order of their arrival."""
    busy = asyncio.Lock()

    async def answer(_body: Any) -> bytes:
        async with busy:
            await asyncio.sleep(service_s)
        return response(b"{}")

    return answer
