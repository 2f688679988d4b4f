"""Progress: how many rows are finished, how fast, and how long the rest takes."""

import time
from collections import deque

from batch.scorer import Finished
from deployments.cluster.progress import Say

EVERY_S = 5.0
RECENT_S = 60.0
"""The rate that the time left follows from is that of the last minute."""


class Progress:
    """Of a run over `sources` inputs. What was finished before counts for the share, not for the rate."""

    def __init__(self, sources: int, say: Say) -> None:
        self._shares = [0.0] * sources
        self._say = say
        self.rows = self.bad_rows = self.new_rows = 0
        self.reason = "as earlier runs found"  # of the last bad row
        self.began_at: float | None = None
        self._ended_at = 0.0
        self._said_at = time.monotonic()
        self._recent: deque[tuple[float, float, int]] = deque()

    def note(self, part: Finished) -> None:
        """A part is finished; its bad rows are counted apart."""
        self.rows += part.count
        self.bad_rows += part.n_bad
        self.reason = part.reason or self.reason
        self._shares[part.source] = max(self._shares[part.source], part.share)
        if part.is_new:
            self.new_rows += part.count
            self.began_at = part.began_at if self.began_at is None else min(self.began_at, part.began_at)
            self._ended_at = max(self._ended_at, part.ended_at)
        else:
            self._recent.clear()  # what was finished before took no time
        now = time.monotonic()
        self._recent.append((now, self.share, self.new_rows))
        while now - self._recent[0][0] > RECENT_S:
            self._recent.popleft()
        if now - self._said_at >= EVERY_S:
            self._said_at = now
            self._say(self.line())

    @property
    def share(self) -> float:
        """Of all inputs that is finished, by their length."""
        return sum(self._shares) / len(self._shares)

    @property
    def seconds(self) -> float:
        """From the start of the first part of this run to the end of the last."""
        return 0.0 if self.began_at is None else max(0.0, self._ended_at - self.began_at)

    @property
    def rows_per_s(self) -> float:
        return self.new_rows / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """`12,288 rows, 3 bad, 412 rows/s, 43%, 2 min 10 s left`."""
        bad = f", {self.bad_rows:,} bad" if self.bad_rows else ""
        left = ""
        (then, share, rows), (now, last_share, last_rows) = self._recent[0], self._recent[-1]
        rate = (last_rows - rows) / (now - then) if now > then else self.rows_per_s
        if last_share > share:
            left = f", {duration((1 - last_share) * (now - then) / (last_share - share))} left"
        return f"{self.rows:,} rows{bad}, {rate:,.3g} rows/s, {100 * self.share:.0f}%{left}"


def duration(seconds: float) -> str:
    """`2 h 5 min`, `2 min 10 s`, `8 s`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
