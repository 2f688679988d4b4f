"""Captures: no other work on the GPU begins or ends while a CUDA graph is captured.

ONNX Runtime captures in CUDA's global mode: until the capture ends, an allocation or a copy by any other thread of the
process fails, and the capture with it. A model that is loaded beside one that serves captures while the other runs.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Captures:
    """Work that shares the GPU, and captures that have it alone. Shares nest; a capture within a share would wait for
    itself.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = self._loading = self._waiting = 0
        self._is_capturing = False
        self._depth = threading.local()

    @contextmanager
    def share(self) -> Iterator[None]:
        """Within it, no capture runs. One that waits goes first: runs that overlap would keep it waiting for ever."""
        depth = getattr(self._depth, "value", 0)
        if depth == 0:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_capturing and not self._waiting)
                self._sharing += 1
        self._depth.value = depth + 1
        try:
            yield
        finally:
            self._depth.value = depth
            if depth == 0:
                with self._changed:
                    self._sharing -= 1
                    self._changed.notify_all()

    @contextmanager
    def load(self) -> Iterator[None]:
        """A share of seconds, as loading a model takes: captures do not wait for it, but are refused meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_capturing)
            self._loading += 1
        try:
            yield
        finally:
            with self._changed:
                self._loading -= 1

    @contextmanager
    def capture(self) -> Iterator[bool]:
        """Wait until all that shares the GPU has ended, and have it alone; False, and a share, while a model loads."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._sharing and not self._is_capturing)
            self._waiting -= 1
            alone = self._is_capturing = not self._loading
            if not alone:
                self._sharing += 1
                self._changed.notify_all()
        try:
            yield alone
        finally:
            with self._changed:
                if alone:
                    self._is_capturing = False
                else:
                    self._sharing -= 1
                self._changed.notify_all()


CAPTURES = Captures()
"""Of this process."""
