"""A page in headless Chromium, driven over the DevTools protocol: scripts run in it, and real keys are pressed."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_WAIT_S = 30
_KEYS = {"Tab": 9, "Enter": 13, "Space": 32}
_CONTROL = 2


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._sent = socket, 0
        self.faults: list[str] = []
        """What the page's scripts failed with, and what its console called an error."""
        self.prompted, self.given = 0, list[str]()
        """How often the page has asked a person for a text, and what that person types, one after the other; then it is
        declined.
        """

    def call(self, method: str, **parameters: Any) -> Any:
        """A method of the protocol; raises AssertionError where it fails."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(_WAIT_S))
            if message.get("id") == self._sent:
                assert "error" not in message, message["error"]
                return message["result"]
            if message.get("method") == "Page.javascriptDialogOpening":
                self.prompted += 1
                given = {"accept": True, "promptText": self.given.pop(0)} if self.given else {"accept": False}
                answer = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": given}
                self._socket.send(json.dumps(answer))
            if message.get("method") == "Runtime.exceptionThrown":
                self.faults.append(json.dumps(message["params"]["exceptionDetails"])[:500])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.faults.append(json.dumps(message["params"]["entry"])[:500])

    def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """The first true value of an expression."""
        ends_at = time.monotonic() + _WAIT_S
        while not (value := self.run(script)):
            assert time.monotonic() < ends_at, f"{script} stays {value!r}; {self.faults}"
            time.sleep(0.05)
        return value

    def press(self, key: str, control: bool = False) -> None:
        """A key of `_KEYS`, or a small letter."""
        number = _KEYS.get(key) or ord(key.upper())
        code = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": number}
        text = {"Enter": "\r", "Space": " ", "Tab": ""}.get(key, key)
        modifiers = _CONTROL if control else 0
        shown = {"text": text} if text and not control else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **code, **shown)
        self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **code)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def names(self, role: str) -> list[str]:
        """The accessible names of everything of a role, as a screen reader says them."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            node.get("name", {}).get("value", "")
            for node in nodes
            if not node["ignored"] and node.get("role", {}).get("value") == role
        ]


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own, whose profile lies in `folder`."""
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    options += [f"--user-data-dir={folder}", "--disable-background-networking", "--disable-dev-shm-usage"]
    browser = subprocess.Popen([CHROMIUM, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        place, ends_at = folder / "DevToolsActivePort", time.monotonic() + _WAIT_S
        while not (place.is_file() and len(place.read_text(encoding="utf-8").splitlines()) == 2):
            assert time.monotonic() < ends_at, "Chromium does not start"
            assert browser.poll() is None, "Chromium has ended"
            time.sleep(0.05)
        port, path = place.read_text(encoding="utf-8").splitlines()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
            target = Page(socket).call("Target.createTarget", url="about:blank")["targetId"]
        with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as socket:
            yield Page(socket)
    finally:
        browser.terminate()
        browser.wait(_WAIT_S)
