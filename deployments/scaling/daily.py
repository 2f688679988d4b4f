"""DailyPattern: how many replicas the work of each quarter of an hour took on recent days. No Ray, no clock.

Times are seconds since 1970; days begin at midnight UTC.
"""

import math
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

from msgspec import Meta

from pipelines.errors import ConfigurationError, InvalidInputError
from pipelines.schema import convert, encode, read_json

PARTS = 96  # of a day
DAYS = 7  # that count
MAX_REPLICAS = 1_000_000

Peaks = Annotated[list[Annotated[int, Meta(ge=0, le=MAX_REPLICAS)]], Meta(max_length=DAYS)]


@dataclass(frozen=True)
class _File:
    """A pattern as it is kept: the peaks of recent days for each part of a day, the oldest first."""

    day_s: float
    peaks: Annotated[list[Peaks], Meta(min_length=PARTS, max_length=PARTS)]


@dataclass
class DailyPattern:
    """A part of the day needs the median of its peaks on the last DAYS days: one strange day changes nothing."""

    day_s: float
    _peaks: list[deque[int]] = field(default_factory=lambda: [deque(maxlen=DAYS) for _ in range(PARTS)])
    recorded: int = 0
    """Parts that have ended since this object was made."""
    _part: int | None = None  # since 1970, that goes on now
    _peak: int = 0

    def note(self, now_s: float, replicas: int) -> None:
        """The work takes so many now. A part's peak is kept once it has ended."""
        part = self._part_at(now_s)
        if part == self._part:
            self._peak = max(self._peak, replicas)
            return
        if self._part is not None:
            self._peaks[self._part % PARTS].append(self._peak)
            self.recorded += 1
        self._part, self._peak = part, replicas

    def needs(self, now_s: float, ahead_s: float = 0.0) -> int:
        """The most that any part from now to `ahead_s` later needs; 0 where nothing was recorded."""
        first, last = self._part_at(now_s), self._part_at(now_s + min(ahead_s, self.day_s))
        recorded = [self._peaks[part % PARTS] for part in range(first, last + 1)]
        return max((math.ceil(median(peaks)) for peaks in recorded if peaks), default=0)

    @staticmethod
    def file(folder: Path, deployment: str) -> Path:
        """Where a deployment's pattern is kept; `deployment` is APPLICATION:DEPLOYMENT."""
        return folder / f"{deployment.replace('/', '_').replace(':', '_')}.json"

    def write(self, file: Path) -> None:
        """Keep it, at once or not at all; raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        staged = file.with_suffix(f".{os.getpid()}")
        staged.write_bytes(self.text())
        staged.replace(file)

    def text(self) -> bytes:
        """JSON, for `of_text`."""
        return encode(_File(self.day_s, [list(peaks) for peaks in self._peaks]))

    @classmethod
    def of_text(cls, text: bytes) -> "DailyPattern":
        """Raises ConfigurationError for what `text` did not write."""
        try:
            found: _File = convert(read_json(text), _File)
        except InvalidInputError as error:
            raise ConfigurationError(f"no recorded pattern: {error}") from None
        if not 0 < found.day_s < math.inf:
            raise ConfigurationError(f"no recorded pattern: day_s is {found.day_s}; allowed: above 0")
        return cls(found.day_s, [deque(peaks, maxlen=DAYS) for peaks in found.peaks])

    def _part_at(self, at_s: float) -> int:
        return math.floor(at_s * PARTS / self.day_s)
