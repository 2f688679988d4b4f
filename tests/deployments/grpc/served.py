"""Task servers behind the port for gRPC, without Ray: HAProxy with our lines, and replicas as Ray runs them."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.cluster.ray_environment import spare_port
from deployments.config import model_of, route_of, task_of
from deployments.http.guard import FromIngress
from deployments.http.listening import Server
from deployments.http.middleware import RenameDeadline
from deployments.ingress.config import IngressConfig
from deployments.task_server import TaskServer
from tests.deployments.ingress.running import Running

Handler = Callable[[Request], Any]


class Replica:
    """A handler behind the HTTP server and the middleware of Ray Serve's replicas, in a thread of its own."""

    def __init__(self, prefix: str, handler: Callable[[], Any]) -> None:
        """`handler` is called in the thread: it makes, or is awaited for, what answers requests."""
        self.port = spare_port()
        self._prefix, self._make = prefix.rstrip("/"), handler
        self._ready = threading.Event()
        self.handler: Any = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(120)

    def call(self, function: Callable[[], Any]) -> None:
        """Call something in the thread of the replica."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(function)

    def close(self) -> None:
        assert self._server is not None
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(30)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.handler = await self._make()
        app = RenameDeadline(FromIngress(self._answer, ""))
        config = uvicorn.Config(lambda: app, factory=True, port=self.port, lifespan="off", log_config=None)
        self._server = Server(config, [])
        opened = socket.create_server(("127.0.0.1", self.port))
        serving = asyncio.create_task(self._server.serve([opened]))
        self._ready.set()
        with suppress(asyncio.CancelledError):
            await serving

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/-/healthz":
            await Response(b"success")(scope, receive, send)
            return
        scope["root_path"] = self._prefix
        disconnecting = not any(name == b"x-request-disconnect-disabled" for name, _ in scope["headers"])
        received: asyncio.Queue[Any] = asyncio.Queue()
        answering = asyncio.create_task(self._respond(scope, received.get if disconnecting else receive, send))
        watching = asyncio.create_task(_watch(receive, received)) if disconnecting else None
        done, _ = await asyncio.wait(
            [one for one in (answering, watching) if one is not None], return_when=asyncio.FIRST_COMPLETED
        )
        if answering not in done:
            answering.cancel()  # as Ray Serve does when the client leaves
        if watching is not None:
            watching.cancel()
        with suppress(asyncio.CancelledError):
            await answering

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.handler(Request(scope, receive, send))
        await response(scope, receive, send)


async def _watch(receive: Receive, received: "asyncio.Queue[Any]") -> None:
    while True:
        message = await receive()
        received.put_nowait(message)
        if message["type"] == "http.disconnect":
            return


@dataclass
class Served:
    """The ingress, and its replicas by application."""

    ingress: Running
    replicas: Mapping[str, Replica]

    @property
    def address(self) -> str:
        return f"{self.ingress.host}:{self.ingress.config.grpc_port}"


@contextmanager
def served(
    folder: Path,
    models: Mapping[str, Path],
    config: IngressConfig | None = None,
    host: str = "127.0.0.1",
    adapters: Mapping[str, str] | None = None,
    **user_config: Any,
) -> Iterator[Served]:
    """An application for each of `models`; those of the gateway are not answered. Of the first one `adapters` are
    folders of adapters by name.
    """
    config = config or IngressConfig(grpc_port=spare_port())

    def made(application: str, model: Path) -> Callable[[], Any]:
        async def make() -> TaskServer:
            server = TaskServer(task_of(application), model=model_of(application))
            own = {"adapters": adapters} if adapters and application == next(iter(models)) else {}
            await server.reconfigure({"model": str(model), **user_config, **own})
            return server

        return make

    prefixes = {name: route_of(name) for name in models}
    replicas = {name: Replica(prefixes[name], made(name, model)) for name, model in models.items()}
    ports = {name: one.port for name, one in replicas.items()}
    bases = dict.fromkeys(adapters or (), next(iter(models)))
    ingress = Running(folder, config, host, spare_port(), ports, prefixes, adapters=bases)
    try:
        ingress.start()
        yield Served(ingress, replicas)
    finally:
        for process in ingress.processes:
            process.kill()
            process.wait()
        for one in replicas.values():
            one.close()


def tensor(texts: list[Any], name: str = "args", column: bool = True) -> triton.InferInput:
    """A BYTES tensor of texts, or of bytes."""
    given = [one if isinstance(one, bytes) else one.encode() for one in texts]
    found = triton.InferInput(name, [len(texts), 1] if column else [len(texts)], "BYTES")
    values = np.array(given, object)
    found.set_data_from_numpy(values.reshape(-1, 1) if column else values)
    return found
