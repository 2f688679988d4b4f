"""SimulatedLoop: an event loop whose clock jumps from event to event. A scheduler on it notices nothing."""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

Callback = Callable[..., object]


class Timer:
    """A callback at a time; what `call_at` returns."""

    __slots__ = ("args", "callback", "is_cancelled")

    def __init__(self, callback: Callback, args: tuple[Any, ...]) -> None:
        self.callback, self.args, self.is_cancelled = callback, args, False

    def cancel(self) -> None:
        self.is_cancelled = True


class SimulatedLoop:
    """Seconds begin at 0. Callbacks of equal times run in the order in which they were asked for.

    It has what schedulers and futures use of an event loop, and nothing else.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._ready: deque[tuple[Callback, tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the running event loop of this thread."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            yield
        finally:
            asyncio._set_running_loop(before)

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def call_soon(self, callback: Callback, *args: Any, context: Any = None) -> None:
        self._ready.append((callback, args))

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Callback, *args: Any, context: Any = None) -> Timer:
        timer = Timer(callback, args)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_later(self, delay: float, callback: Callback, *args: Any, context: Any = None) -> Timer:
        return self.call_at(self.now_s + delay, callback, *args)

    def advance(self, until_s: float) -> None:
        """Run everything that is due up to `until_s`, which is the time then."""
        ready, timers = self._ready, self._timers
        while True:
            while ready:
                callback, args = ready.popleft()
                callback(*args)
            if not timers or timers[0][0] > until_s:
                break
            due_s, _, timer = heapq.heappop(timers)
            if not timer.is_cancelled:
                self.now_s = max(self.now_s, due_s)
                timer.callback(*timer.args)
        self.now_s = max(self.now_s, until_s)

    def run(self, coroutine: Coroutine[Any, Any, Any], ended: Callable[[Any, Exception | None], None]) -> None:
        """Run a coroutine that awaits futures of this loop; `ended` gets its result, or what it raised.

        What it does before its first `await` has happened when this returns. A Task would cost as much as a scheduler.
        """
        try:
            future = coroutine.send(None)
        except StopIteration as done:
            ended(done.value, None)
        except Exception as error:
            ended(None, error)
        else:
            future.add_done_callback(lambda _: self.run(coroutine, ended))
