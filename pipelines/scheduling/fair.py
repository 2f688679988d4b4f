"""Fair sharing: requests take turns by the work that they cause, whatever number of rows they have.

A request arrives at the current virtual time, which is the start tag of its first row. Each further row starts when the
work of the rows before it would be done if all active requests shared the machine equally (weighted fair queueing with
start tags). So first rows go in order of arrival, and a request of a thousand rows gets one share of the work, as a
request of one row does.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar


class FairClock:
    """Virtual time in units of work: it runs as fast as work is done, divided by the number of active requests."""

    def __init__(self) -> None:
        self.now = 0.0
        self.active = 0

    def arrive(self) -> float:
        """The start tag of a request that becomes active."""
        self.active += 1
        return self.now

    def leave(self) -> None:
        """A request is not active any more."""
        self.active -= 1

    def advance(self, work: float) -> None:
        """`work` was begun."""
        self.now += work / max(1, self.active)


class Tagged(Protocol):
    """What the queue must know of a row: `tag` is its start tag, `number` orders rows of one tag."""

    @property
    def tag(self) -> float: ...

    @property
    def number(self) -> int: ...


TaggedT = TypeVar("TaggedT", bound=Tagged)


class FairQueue(Generic[TaggedT]):
    """Rows that wait, by start tag. Any row may leave at any time."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, TaggedT]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TaggedT]:
        return (row for _, _, row in self._rows)

    def put(self, rows: Iterable[TaggedT]) -> None:
        """Numbers are unique, so that rows themselves are never compared."""
        entries = [(row.tag, row.number, row) for row in rows]
        if len(entries) == 1:
            insort(self._rows, entries[0])
        else:
            self._rows += entries
            self._rows.sort()

    def discard(self, rows: Iterable[TaggedT]) -> list[TaggedT]:
        """Remove rows; returns those that were there."""
        found = []
        for row in rows:
            key: Any = (row.tag, row.number)
            at = bisect_left(self._rows, key)
            if at < len(self._rows) and self._rows[at][2] is row:
                del self._rows[at]
                found.append(row)
        return found

    def due(self, now: float) -> int:
        """How many rows start at `now` or before: they go before a row that arrives now."""
        key: Any = (now, float("inf"))
        return bisect_right(self._rows, key)


class Backlog:
    """The work that waits, by request: how much of it goes before a newcomer under fair sharing."""

    def __init__(self) -> None:
        self.tokens = 0
        self.work_s = 0.0
        self._requests: dict[Any, tuple[int, float]] = {}  # with several waiting rows: how many, and their seconds

    def put(self, request: Any, rows: int, tokens: int, work_s: float) -> None:
        """`rows` of a new request wait."""
        self.tokens += tokens
        self.work_s += work_s
        if rows > 1:
            self._requests[request] = (rows, work_s)

    def take(self, request: Any, tokens: int, work_s: float) -> None:
        """One row of a request waits no more."""
        self.tokens -= tokens
        self.work_s -= work_s
        if request in self._requests:
            rows, rest_s = self._requests.pop(request)
            if rows > 2:
                self._requests[request] = (rows - 1, rest_s - work_s)
        if not self.tokens:
            self.work_s = 0.0  # without what rounding left

    @property
    def has_lists(self) -> bool:
        """Whether a request with several waiting rows is among them; else `work_s` goes before any newcomer."""
        return bool(self._requests)

    def before_s(self, own_s: float) -> float:
        """Seconds of other requests' work that go before the last of `own_s` seconds of a request that comes now.

        First rows go in order of arrival; of a request with several rows, at most as much as the newcomer gets itself.
        """
        before_s = self.work_s
        for rows, rest_s in self._requests.values():
            before_s -= rest_s - min(rest_s, max(own_s, rest_s / rows))
        return max(0.0, before_s)
