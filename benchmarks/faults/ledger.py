"""Ledger: every request that was sent while something failed, matched with its answer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmarks.load.client import CLOSED, REFUSED, Exchange

WRONG_ANSWER = "the answer to another request"
ANSWERS = ("200", "408", "429", "503")
"""What a client of a task can act on: the answer, its own deadline, or when to ask again."""
READY = ("200", "429")
"""What a service that is ready answers: it does the work, or says at once that it has too much."""
CLOSING_S = 0.1  # after a process was killed its connections may still take a request
LISTED = 20  # requests without an answer that a result lists; all are counted


@dataclass(frozen=True)
class Entry:
    """One request and its outcome: an HTTP status, or why there is none. Times are of `time.perf_counter`."""

    number: str
    sent_at: float
    ended_at: float
    outcome: str

    @property
    def is_lost(self) -> bool:
        """Whether it has no answer: none came, another request's, or one that no client can act on."""
        return self.outcome not in ANSWERS

    @classmethod
    def of(cls, number: str, exchange: Exchange) -> "Entry":
        """The outcome of a request whose `x-request-id` was `number`; only a 200 has to name it."""
        mismatched = exchange.request_id != number and (exchange.succeeded or exchange.request_id is not None)
        outcome = WRONG_ANSWER if mismatched else exchange.status
        return cls(number, exchange.started_at, exchange.ended_at, outcome)


@dataclass
class Ledger:
    """The requests of one fault. It happened at `struck_at`, and the load went on until `closed_at`."""

    struck_at: float = 0.0
    closed_at: float = 0.0
    entries: list[Entry] = field(default_factory=list)

    @property
    def lost(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.is_lost]

    @property
    def lost_besides_outage(self) -> list[Entry]:
        """Those lost but for what nobody could keep: requests inside at the fault, and refused connections after it."""
        refused = [one.ended_at for one in self.lost if one.outcome == REFUSED and one.ended_at > self.struck_at]
        began_at = min(refused, default=self.struck_at)  # a longer gap than that of the outage may follow
        since, until = next(gap for gap in self.gaps(0.0) if gap[0] <= began_at <= gap[1])
        return [
            one
            for one in self.lost
            if not (one.outcome == CLOSED and one.sent_at <= self.struck_at + CLOSING_S)
            and not (one.outcome == REFUSED and since <= one.ended_at <= until)
        ]

    @property
    def gap_s(self) -> float:
        """The longest time after the fault in which no request was answered with 200."""
        return max((until - since for since, until in self.gaps(0.0)), default=0.0)

    def gaps(self, least_s: float, answers: Sequence[str] = ("200",)) -> list[tuple[float, float]]:
        """From which time until which no request was answered with one of `answers`, for more than `least_s`."""
        answered = sorted(entry.ended_at for entry in self.entries if entry.outcome in answers)
        before = [at for at in answered if at <= self.struck_at][-1:] or [self.struck_at]
        after = [at for at in answered if self.struck_at < at < self.closed_at]
        edges = [*before, *after, self.closed_at]
        return [(since, until) for since, until in pairwise(edges) if until - since > least_s]

    def summary(self) -> dict[str, Any]:
        """What a result file keeps: counts, the longest gap, and the first requests without an answer."""
        return {
            "sent": len(self.entries),
            "outcomes": dict(Counter(entry.outcome for entry in self.entries)),
            "lost": len(self.lost),
            "gap_s": self.gap_s,
            "lost_requests": [
                {"number": one.number, "after_s": one.sent_at - self.struck_at, "outcome": one.outcome}
                for one in self.lost[:LISTED]
            ],
        }
