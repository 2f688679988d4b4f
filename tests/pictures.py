"""Pictures of the console and of `sextet top` for README and docs, of a cluster that runs: its URL, its metrics' URL.

python -m tests.pictures http://127.0.0.1:8000 http://127.0.0.1:9103/metrics
"""

import base64
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path

import httpx
from PIL import Image
from rich.console import Console

from deployments.observability.top import Snapshot, rows, table
from pipelines.tasks import TASKS
from tests.browser import Page, chromium

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
WIDTH, HEIGHT = 1180, 800
COLORS = 96
"""Of a picture: twice as many make it half as large again, and nobody sees them."""
WATCHED_S = 6.0
TOP_WIDTH = 140


@contextmanager
def asked(url: str) -> Iterator[None]:
    """Each task is asked its examples meanwhile, one after the other."""
    ends = threading.Event()

    def ask(name: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not ends.is_set():
                for one in TASKS[name].examples:
                    client.post(f"/{name}", json={"inputs": one.inputs, "parameters": dict(one.parameters)})

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in TASKS]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        ends.set()
        for one in threads:
            one.join(60)


def keep(tab: Page, name: str, height: int = HEIGHT, width: int = WIDTH) -> None:
    """The page as it is now, as a small file."""
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    time.sleep(1.0)  # animations end
    taken = Image.open(BytesIO(base64.b64decode(tab.call("Page.captureScreenshot", format="png")["data"])))
    FOLDER.mkdir(exist_ok=True)
    taken.convert("RGB").quantize(COLORS).save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}.png {(FOLDER / f'{name}.png').stat().st_size / 1024:.0f} KiB")


def top(metrics: str) -> str:
    """What `sextet top` shows after WATCHED_S, as SVG."""

    def look() -> Snapshot:
        return Snapshot.of(httpx.get(metrics, timeout=30).text, time.monotonic())

    before = look()
    time.sleep(WATCHED_S)
    console = Console(record=True, width=TOP_WIDTH, file=StringIO())
    console.print(table(rows(before, look())))
    return console.export_svg(title="sextet top")


def main(url: str, metrics: str) -> None:
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as tab, asked(url):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        tab.open(f"{url}/#token-classification")
        tab.wait_for("document.querySelectorAll('#models a').length > 0")
        tab.run("document.querySelector('[data-language=en]').click(), document.querySelector('#live').open = true")
        tab.run("document.querySelector('#form').requestSubmit()")
        tab.wait_for("document.querySelectorAll('#live-table tbody tr').length > 0")
        time.sleep(WATCHED_S)
        keep(tab, "console", 960)
        tab.run("location.hash = '/text-classification'")
        tab.wait_for("document.querySelector('#model-card') !== null")
        time.sleep(WATCHED_S)
        keep(tab, "model", 960)
        file = Path(folder) / "top.html"
        file.write_text(f"<body style='margin:0'>{top(metrics)}</body>", encoding="utf-8")
        tab.open(file.as_uri())
        tab.wait_for("document.querySelector('svg') !== null")
        tab.run("document.querySelector('svg').style.width = '1000px'")
        height = tab.run("Math.ceil(document.querySelector('svg').getBoundingClientRect().height)")
        keep(tab, "top", int(height), 1000)


if __name__ == "__main__":
    main(*sys.argv[1:])
