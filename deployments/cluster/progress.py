"""Progress on the terminal: what a step does, and every few seconds that it still runs."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]
REMINDER_S = 5.0


@contextmanager
def step(what: str, say: Say) -> Iterator[None]:
    """Say `what`, and every REMINDER_S how long it has taken, until the block ends."""
    say(what)
    started_at = time.monotonic()
    ended = threading.Event()

    def remind() -> None:
        while not ended.wait(REMINDER_S):
            say(f"{what}: {time.monotonic() - started_at:.0f} s")

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        ended.set()
        reminder.join()
