"""Signals to `sextet serve`: the first SIGINT, SIGTERM or SIGHUP stops it, SIGUSR1 makes it read its file again."""

import signal
from types import FrameType


class Stopped(BaseException):
    """Somebody asked this process to end."""


class Signals:
    """Raises Stopped in the main thread at the first signal that stops, and never again; remembers SIGUSR1."""

    def __init__(self) -> None:
        self.stop_was_asked = False
        self._ending = False
        self._reload = False
        self._stops = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            self._stops.append(signal.SIGHUP)

    def install(self) -> None:
        """Take the signals over, also from whoever has taken them meanwhile."""
        for number in self._stops:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._ask_to_reload)

    def ignore(self) -> None:
        """From now on nothing is raised: what ends is not interrupted."""
        self._ending = True
        self.install()

    def check(self) -> None:
        """Raise Stopped where a stop was asked and somebody swallowed the exception."""
        if self.stop_was_asked:
            raise Stopped

    def reload_was_asked(self) -> bool:
        """Whether SIGUSR1 came since the last call."""
        asked, self._reload = self._reload, False
        return asked

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self.stop_was_asked and not self._ending:
            self.stop_was_asked = True
            raise Stopped

    def _ask_to_reload(self, number: int, frame: FrameType | None) -> None:
        self._reload = True
