"""The console's live view: what the gateway streams, and what a real browser shows of it."""

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from websockets.sync.client import connect

from deployments.cluster.ray_environment import spare_port
from deployments.console import live as live_view
from deployments.console.live import MAX_WATCHERS, LiveView
from deployments.console.page import page
from deployments.http.errors import Failure, UnavailableError
from deployments.observability.statistics import of_adapter

APPLICATION, ROUTE = "text-generation.large", "/text-generation/large"


class Counting:
    """Models of which one answers ten requests between two questions, in 60 ms each."""

    def __init__(self) -> None:
        self.asked = 0

    async def readiness(self) -> Mapping[str, bool]:
        return {APPLICATION: True}

    async def numbers(self, applications: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        self.asked += 1
        counted = 10.0 * self.asked
        now = {"replicas": 2.0, "waiting": 3.0, "slots": 16.0, "taken_slots": 5.0}
        return {
            name: {"answered": counted, "at_most_0.05": 0.0, "at_most_0.1": counted, **now} for name in applications
        }


async def first_event(view: LiveView) -> Any:
    """The first event of a stream that its client then leaves."""
    sent: asyncio.Queue[Any] = asyncio.Queue()
    stream = view.stream()
    watching = asyncio.create_task(stream({"type": "http"}, asyncio.Event().wait, sent.put))  # type: ignore[arg-type]
    await sent.get()
    event = (await sent.get())["body"]
    watching.cancel()
    await asyncio.wait([watching])
    return json.loads(event.removeprefix(b"data: "))


def test_an_event_says_what_each_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_view, "EVERY_S", 0.1)

    event = asyncio.run(first_event(LiveView(Counting())))

    (model,) = event["models"]
    assert (model["route"], model["replicas"], model["taken_slots"], model["slots"]) == (ROUTE, 2, 5, 16)
    assert 0 < model["requests_per_s"] <= 110
    assert 50 < model["p50_ms"] <= model["p99_ms"] <= 100


class WithAdapter(Counting):
    """The same, of whose requests another third is an adapter's."""

    async def numbers(self, applications: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        counted = await super().numbers(applications)
        return {
            name: {**own, **of_adapter("pirate", own), "pirate/answered": own["answered"] / 2}
            for name, own in counted.items()
        }


def test_an_adapter_has_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_view, "EVERY_S", 0.1)

    event = asyncio.run(first_event(LiveView(WithAdapter())))

    base, adapter = event["models"]
    assert (base["route"], adapter["route"]) == (ROUTE, f"{ROUTE}/pirate")
    assert adapter["requests_per_s"] == pytest.approx(base["requests_per_s"] / 2)
    assert (adapter["replicas"], adapter["slots"]) == (2, 16)


def test_watchers_are_bounded_and_one_that_left_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_view, "EVERY_S", 0.01)

    async def scenario() -> None:
        view = LiveView(Counting())
        for _ in range(MAX_WATCHERS - 1):
            view.stream()
        await first_event(view)
        view.stream()
        with pytest.raises(UnavailableError, match=f"{MAX_WATCHERS} watch already"):
            view.stream()

    asyncio.run(scenario())


def test_a_stream_ends_with_the_gateway() -> None:
    async def scenario() -> list[Any]:
        view, sent = LiveView(Counting()), list[Any]()

        async def send(message: Any) -> None:
            sent.append(message)

        watching = asyncio.create_task(view.stream()({"type": "http"}, asyncio.Event().wait, send))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        view.end()
        async with asyncio.timeout(5):
            await watching
        return sent

    assert asyncio.run(scenario())[-1]["more_body"] is False


@contextmanager
def served() -> Iterator[str]:
    """The page, its files, the stream, and a catalog of nothing, at a URL."""
    view = LiveView(Counting())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/live":
            await view.stream()(scope, receive, send)
            return
        found = page("index.html" if path == "/" else path.removeprefix("/console/"))
        if path == "/" and "text/html" not in Request(scope).headers.get("accept", ""):
            found = None
        response = found or Failure(404, "nothing", "not_found").response()
        await response(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=(port := spare_port()), lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        view.end()
        server.should_exit = server.force_exit = True
        thread.join(20)


@contextmanager
def browser(folder: Path, *options: str) -> Iterator[Callable[..., Any]]:
    """A real browser with a page; yields what evaluates an expression in it."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium here")
    command = [binary, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", *options]
    with subprocess.Popen(
        [*command, "--remote-debugging-port=0", "about:blank"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            line = next(one for one in process.stderr if one.startswith("DevTools listening on ws://"))
            address = line.split()[-1].removeprefix("ws://").partition("/")[0]
            with urlopen(f"http://{address}/json") as response:
                (page,) = [one for one in json.load(response) if one["type"] == "page"]
            with connect(page["webSocketDebuggerUrl"]) as socket:

                def call(method: str, **parameters: Any) -> Any:
                    socket.send(json.dumps({"id": 1, "method": method, "params": parameters}))
                    while (answer := json.loads(socket.recv(30))).get("id") != 1:
                        pass
                    return answer["result"]

                yield call
        finally:
            process.kill()


def value(call: Callable[..., Any], expression: str) -> Any:
    return call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


@pytest.mark.parametrize(("language", "heading"), [("en-US", "Requests/s"), ("ko-KR", "요청/초")])
def test_a_browser_shows_the_table_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, heading: str
) -> None:
    monkeypatch.setattr(live_view, "EVERY_S", 0.2)
    with (
        served() as url,
        browser(tmp_path, f"--lang={language}", f"--accept-lang={language}", "--window-size=390,844") as call,
    ):
        call("Page.navigate", url=f"{url}/#live")
        give_up_at = time.monotonic() + 30
        while ROUTE not in (table := value(call, "document.getElementById('live-table')?.innerText") or ""):
            assert time.monotonic() < give_up_at, table
            time.sleep(0.1)
        cells = value(call, "[...document.querySelectorAll('#live-table tbody td')].map((one) => one.textContent)")
        value(call, "document.getElementById('live').open = false")
        width = value(call, "document.documentElement.scrollWidth - document.documentElement.clientWidth")

    assert heading in table
    assert (cells[0], cells[2], cells[5:]) == ("2", "0.0 %", ["3", "5/16"])
    assert cells[3].endswith(" ms")
    assert width == 0  # nothing beyond the page, where it is as narrow as a phone
