"""The signals that operators send to `sextet serve`."""

import signal
from types import FrameType


class StopRequested(BaseException):
    """SIGINT, SIGTERM or SIGHUP came."""


class Signals:
    """The first SIGINT, SIGTERM or SIGHUP raises StopRequested in the main thread; SIGUSR1 is remembered.

    A later one says that the end must not wait for requests.
    """

    def __init__(self) -> None:
        self.stop_was_requested = False
        self.must_end_at_once = False
        self._ending = False
        self._reload = False
        self._stops = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            self._stops.append(signal.SIGHUP)

    def install(self) -> None:
        """Install the handlers. Call it again where a library has installed its own."""
        for number in self._stops:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._ask_to_reload)

    def end(self) -> None:
        """The cluster ends: from now on a signal raises nothing."""
        self._ending = True
        self.install()

    def raise_if_stop_requested(self) -> None:
        """Raise StopRequested again, in case a library swallowed it."""
        if self.stop_was_requested:
            raise StopRequested

    def reload_was_requested(self) -> bool:
        """Whether SIGUSR1 came since the last call."""
        asked, self._reload = self._reload, False
        return asked

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_was_requested or self._ending:
            self.must_end_at_once = True
            return
        self.stop_was_requested = True
        raise StopRequested

    def _ask_to_reload(self, number: int, frame: FrameType | None) -> None:
        self._reload = True
