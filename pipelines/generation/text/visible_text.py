"""VisibleText: an answer's text as it grows, up to its stop string and without it."""

from collections.abc import Sequence


class VisibleText:
    """The pieces that may be shown: whatever could be the beginning of a stop string waits until it is not."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What may be shown after `piece` came; "" for ever once `stopped`."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = self._begun(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """How many characters at the end of `text` begin a stop string; the most of them."""
        longest = min(len(text), self._longest - 1)
        return next((n for n in range(longest, 0, -1) if any(one.startswith(text[-n:]) for one in self._stops)), 0)
