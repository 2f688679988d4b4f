"""The console with task servers behind it, without Ray: the gateway asks them as it asks replicas."""

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.config import model_of, route_of, task_of
from deployments.console import live as live_view
from deployments.gateway import Gateway
from deployments.ingress.haproxy import SETTINGS, WRAPPER_VARIABLE
from deployments.ingress.lines import Settings
from deployments.observability.metrics import Metrics
from deployments.task_server import TaskServer
from pipelines.runtime.artifact import MANIFEST_NAME, FileDigest, Manifest

EVERY_S = 0.2


def with_card(artifact: Path, folder: Path, card: str | None, **changes: Any) -> Path:
    """A copy of an artifact with another card, or none, and other fields of its manifest."""
    shutil.copytree(artifact, folder)
    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    files = {name: one for name, one in manifest.files.items() if name != "README.md"}
    (folder / "README.md").unlink(missing_ok=True)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
        files["README.md"] = FileDigest.of(folder / "README.md")
    (folder / MANIFEST_NAME).write_text(replace(manifest, files=files, **changes).to_json(), encoding="utf-8")
    return folder


class Cluster:
    """Task servers by application, each the one replica of it; a test may take some away."""

    def __init__(self) -> None:
        self.servers: dict[str, TaskServer] = {}
        self.asleep: set[str] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.url = ""
        self._begins: list[Callable[[float], None]] = []

    def call(self, work: Callable[[], Any]) -> Any:
        """The result of a coroutine that is made and run in the servers' event loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(120)

    async def deploy(self, application: str, model: Path, **user_config: Any) -> None:
        if application not in self.servers:
            metrics = Metrics("r1")
            self.servers[application] = TaskServer(task_of(application), metrics.observer, model=model_of(application))
        await self.servers[application].reconfigure({"model": str(model), "threads": 1, **user_config})

    # What Ray Serve says of them.

    def status(self) -> Any:
        found = {
            name: SimpleNamespace(
                deployments={
                    task_of(name): SimpleNamespace(
                        replica_states={} if name in self.asleep else {"RUNNING": 1}, status="HEALTHY"
                    )
                }
            )
            for name in list(self.servers)
        }
        return SimpleNamespace(applications=found)

    def get_app_handle(self, application: str) -> Any:
        server = self.servers[application]

        def remote(method: str) -> Any:
            async def call() -> Any:
                return getattr(server, method)()

            return SimpleNamespace(remote=call)

        def broadcast(method: str) -> Any:
            async def results(return_exceptions: bool) -> list[Any]:
                return [] if application in self.asleep else [await getattr(server, method)()]

            return SimpleNamespace(results_async=results)

        return SimpleNamespace(describe=remote("describe"), details=remote("details"), broadcast=broadcast)

    # HTTP, as HAProxy leads it.

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/-/healthz":  # of Ray Serve
            await Response()(scope, receive, send)
            return
        prefixes = {route_of(name): one for name, one in self.servers.items()}
        path = f"{scope['path']}/"
        found = max((one for one in prefixes if path.startswith(f"{one}/")), key=len, default=None)
        if found is not None:
            scope["root_path"] = found
        response = await (self._gateway if found is None else prefixes[found])(Request(scope, receive, send))
        await response(scope, receive, send)

    async def run(self, models: Mapping[str, Path], ready: threading.Event, **user_config: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self._gateway = Gateway(on_ending=self._begins.append)
        for application, model in models.items():
            await self.deploy(application, model, **user_config)
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", lifespan="off", interface="asgi3"))
        opened = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        ready.set()
        await self._server.serve([opened])

    def end(self) -> None:
        for begin in self._begins:
            begin(0.0)
        self._server.should_exit = self._server.force_exit = True


@contextmanager
def cluster(folder: Path, models: Mapping[str, Path], traffic: str = "", **user_config: Any) -> Iterator[Cluster]:
    """`models` are artifacts by application, each with `user_config`; `traffic` is the ingress's file of shares."""
    found, ready = Cluster(), threading.Event()
    (folder / "traffic").write_text(traffic, encoding="ascii")
    Settings(traffic=str(folder / "traffic")).write(folder / SETTINGS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ray.serve.status", found.status)
        patched.setattr("ray.serve.get_app_handle", found.get_app_handle)
        patched.setattr(live_view, "EVERY_S", EVERY_S)
        patched.setenv(WRAPPER_VARIABLE, str(folder / "haproxy"))
        thread = threading.Thread(target=lambda: asyncio.run(found.run(models, ready, **user_config)), daemon=True)
        thread.start()
        give_up_at = time.monotonic() + 120
        while not ready.wait(0.05):
            assert thread.is_alive()
            assert time.monotonic() < give_up_at
        try:
            yield found
        finally:
            assert found.loop is not None
            found.loop.call_soon_threadsafe(found.end)
            thread.join(30)
