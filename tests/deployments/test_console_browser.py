"""The console in a real browser: structured output and tools, by keyboard, in both languages, for everybody."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from deployments.console.page import DOCUMENTS, page
from deployments.task_server import TaskServer
from tests.browser import CHROMIUM, Page, chromium
from tests.deployments.protocols.test_tools import Made, made  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
TASK = "text-generation"
SENT = """
(() => {
  const fetched = window.fetch;
  window.sent = [];
  window.fetch = (url, options) => {
    if (options?.method === "POST") window.sent.push(JSON.parse(options.body));
    return fetched(url, options);
  };
})()
"""
NAME = "(one) => one.ariaLabel || one.labels?.[0]?.querySelector('span, code').textContent.trim()"
CONTRASTS = """
(() => {
  const channel = (one) => ((one /= 255) <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = numbers(getComputedStyle(one).backgroundColor);
      if ((color[3] ?? 1) > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const [one, other] = [luminance(numbers(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const name = `${element.tagName}.${element.className} ${element.textContent.slice(0, 20)}`;
    if (ratio < 4.5) low.push(`${name} ${ratio.toFixed(2)}`);
  }
  return low;
})()
"""


@pytest.fixture(scope="module")
def url(made: Made) -> Iterator[str]:  # noqa: F811
    """The page, and a task that generates, on one port of loopback."""
    task: TaskServer = made("hermes")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive, send)
        await (await answer(request))(scope, receive, send)

    async def answer(request: Request) -> Any:
        path = request.url.path
        if path.startswith(f"/{TASK}"):
            request.scope["root_path"] = f"/{TASK}"
            return await task(request)
        if path == "/" and "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"version": "0", "tasks": []})
        return page("index.html" if path == "/" else path.removeprefix("/console/")) or Response(status_code=404)

    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/#{TASK}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def tab(url: str, tmp_path: Path) -> Iterator[Page]:
    with chromium(tmp_path) as tab:
        tab.open(url)
        tab.wait_for("document.querySelector('#field-message') !== null")
        tab.run(SENT)
        tab.run("document.querySelector('[data-language=en]').click(), document.querySelector('#more').open = true")
        yield tab
        assert tab.faults == []


def focus(tab: Page, label: str) -> None:
    """Move the focus by Tab alone to the control with an accessible name."""
    tab.run("document.activeElement.blur()")
    passed = []
    for _ in range(60):
        tab.press("Tab")
        if (found := tab.run(f"({NAME})(document.activeElement)")) == label:
            return
        passed.append(found)
    raise AssertionError(f"no way by Tab to {label}, but to {passed}")


def asked(tab: Page) -> Any:
    """The body of the newest request, once its answer has ended."""
    tab.wait_for("window.sent.length > 0 && document.querySelector('#stop').hidden")
    return tab.run("window.sent.at(-1)")


def test_a_document_is_asked_for_by_keyboard_and_comes(tab: Page) -> None:
    focus(tab, "max_tokens")
    tab.run("document.activeElement.select()")
    tab.type("220")
    focus(tab, "Example: response_format")
    tab.press("Enter")
    assert tab.run(f"({NAME})(document.activeElement)") == "response_format"
    focus(tab, "Message")
    tab.run("document.activeElement.select()")
    for letter in "hi":
        tab.press(letter)
    tab.press("Enter", control=True)

    body = asked(tab)

    assert body["messages"] == [{"role": "user", "content": "hi"}]

    assert body["response_format"] == DOCUMENTS["response_format"]
    assert body["max_tokens"] == 220
    assert tab.run("document.querySelector('#result .assistant p').textContent").startswith("{")
    assert "response_format=" in tab.run(
        "[...document.querySelectorAll('#dialects button')].find((one) => one.textContent === 'openai').click(),"
        "document.querySelector('#snippet').textContent"
    )


def test_calls_are_shown_and_their_results_are_sent(tab: Page) -> None:
    city = {"type": "object", "properties": {"city": {"const": "Oslo"}}, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {**city, "required": ["city"]}}}]
    focus(tab, "tools")
    tab.type(json.dumps(tools))
    focus(tab, "tool_choice")
    tab.run("document.activeElement.value = 'required', document.activeElement.oninput()")
    for seed in range(20):  # random weights write one call, or several
        for name, value in (("seed", seed), ("max_tokens", 150)):
            focus(tab, name)
            tab.run(f"document.activeElement.value = {value}, document.activeElement.oninput()")
        focus(tab, "Message")
        tab.type(f"Weather {seed}?")
        tab.press("Enter", control=True)
        assert asked(tab)["tools"] == tools
        tab.run("window.sent.length = 0")
        if tab.names("textbox").count("Result of weather") == 1:
            break
        assert tab.run("document.querySelector('#result .calls') !== null")  # cut by its length, or several
        tab.run("[...document.querySelectorAll('#result > button')].at(-1)?.click()")
        tab.run("document.querySelector('#more').open = true")
    assert re.match(r'weather\(\{\s*"city"', tab.run("document.querySelector('#result .calls code').textContent"))
    assert "Result of weather" in tab.names("textbox")
    tab.run(
        "[...document.querySelectorAll('#parameters select')].at(-1).value = 'none',"
        "[...document.querySelectorAll('#parameters select')].at(-1).oninput()"
    )
    focus(tab, "Result of weather")
    tab.type("rain")
    tab.run("document.querySelector('#form').requestSubmit()")

    *_, call, result = asked(tab)["messages"]

    assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "rain"}
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}
    assert tab.run("document.querySelectorAll('#result .bubble.tool').length") == 1
    tab.wait_for("document.querySelector('#field-message') !== null")


@pytest.mark.parametrize(("language", "words"), [("en", "This is no JSON."), ("ko", "JSON이 아닙니다.")])
def test_what_is_no_json_is_not_sent_and_said_in_the_pages_language(tab: Page, language: str, words: str) -> None:
    tab.run(f"document.querySelector('[data-language={language}]').click()")
    tab.run("document.querySelector('#more').open = true")
    focus(tab, "tools")
    tab.type('[{"type": ')
    tab.run("document.querySelector('#more').open = false")
    tab.run("document.querySelector('#form').requestSubmit()")

    assert tab.run("window.sent.length") == 0
    assert tab.run("document.querySelector('#more').open")
    assert tab.run("document.querySelector(':invalid[aria-invalid]').validationMessage") == words


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_is_readable(tab: Page, language: str, scheme: str) -> None:
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.run(f"document.querySelector('[data-language={language}]').click()")
    tab.run("document.querySelector('#more').open = true")
    tab.run("document.querySelector('#field-message').value = 'Hi', document.querySelector('#form').requestSubmit()")
    asked(tab)

    for role in ("textbox", "combobox", "button", "spinbutton"):
        names = tab.names(role)
        assert names
        assert all(names), (role, names)
    assert tab.run(CONTRASTS) == []


def test_the_document_of_a_single_request_is_a_grammar(tab: Page) -> None:
    tab.run("document.querySelectorAll('#modes button')[1].click(), document.querySelector('#more').open = true")
    focus(tab, "Example: grammar")
    tab.press("Space")
    tab.run("document.querySelector('#form').requestSubmit()")

    body = asked(tab)

    assert body["parameters"]["grammar"] == DOCUMENTS["grammar"]
    assert tab.run("document.querySelector('#result .grown').textContent").startswith("{")
