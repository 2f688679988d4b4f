"""How many files a reader of one request has to open: a trace of its calls, from TaskServer to the response."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from deployments.task_server import TaskServer

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipelines", "deployments", "stores")
MOST_FILES = 12
TASK = "text-classification"


class Trace:
    """The product's files whose functions ran, in the order of their first call, in all threads."""

    def __init__(self) -> None:
        self.calls: dict[str, str] = {}  # file -> the function that came first
        self._recording = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """In this thread, and in those that start inside the block."""
        threading.setprofile(self._call)
        sys.setprofile(self._call)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def _call(self, frame: FrameType, event: str, _argument: object) -> None:
        if not self._recording or event != "call":
            return
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            self.calls.setdefault(str(path.relative_to(ROOT)), frame.f_code.co_qualname)


def test_a_hugging_face_classify_request_crosses_few_files(exported: Callable[..., Path]) -> None:
    trace, model = Trace(), exported("bert", TASK)
    with trace.installed():  # before the server starts threads

        async def scenario() -> Response:
            server = TaskServer(TASK)
            await server.reconfigure({"model": str(model)})
            await server(request())  # a first request imports what is imported late
            with trace.recording():
                return await server(request())

        response = asyncio.run(scenario())

    assert (response.status_code, set(json.loads(bytes(response.body))[0][0])) == (200, {"label", "score"})
    assert "deployments/task_server.py" in trace.calls
    n_files = len(trace.calls)
    crossed = "\n".join(f"{number:2} {path}: {name}" for number, (path, name) in enumerate(trace.calls.items(), 1))
    assert n_files <= MOST_FILES, f"{n_files} files; allowed: {MOST_FILES}\n{crossed}"


def request() -> Request:
    """A sentence to classify, in the Hugging Face protocol, as Serve hands it over."""
    body = json.dumps({"inputs": "what a film"}).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = {"content-type": "application/json", "content-length": str(len(body))}
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/{TASK}",
        "root_path": f"/{TASK}",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    return Request(scope, receive)
