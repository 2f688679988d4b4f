"""Goodput: the highest rate of an open loop at which a server that generates keeps its service level.

Prompts and answers have log-normal lengths. Rates are fractions of what the server does in a closed loop, the same
fractions for every server. Between two of them the share of good answers is interpolated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

from benchmarks.load.asker import HOST
from benchmarks.load.generator import Load, measure
from benchmarks.load.objective import Objective
from benchmarks.load.texts import Lengths
from benchmarks.peers.peer import PeerError
from benchmarks.suites.engines.contestants import HttpSeat, Prompt

LEVEL = Objective(first_token_s=1.0, token_s=0.1, bad_share=0.1)
"""TTFT 1 s and 100 ms a token, which nine of ten answers have to keep."""
PROMPTS, ANSWERS = Lengths.parse("lognormal:96,384"), Lengths.parse("lognormal:48,160")
LONGEST_PROMPT, LONGEST_ANSWER = 1024, 320
FRACTIONS = (0.4, 0.6, 0.75, 0.9)
MIXTURES = 8  # mixtures of a curve at most
STRIDE = 64  # tokens between the beginnings of two prompts
LOWEST_FRACTION = 0.05  # is tried where no other keeps the level
CLIENTS = 16  # of the closed loop
GIVE_UP_S = 20.0  # a request that takes longer has failed


@dataclass(frozen=True)
class Point:
    """What a server did at a rate: `good` is the share of requests within the level, times are of the 90th percentile
    and in ms.
    """

    rate_per_s: float
    good: float
    tokens_per_s: float
    first_token_ms: float
    token_ms: float

    def figures(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Mixture:
    """Prompts with the lengths of their answers."""

    prompts: Sequence[Prompt]
    answers: Sequence[int]

    @classmethod
    def drawn(cls, tokens: Sequence[int], count: int, seed: int) -> "Mixture":
        """Prompts are cut from a long text of `tokens`, each at another place, and at others for another seed: no
        server has read the beginning of one before.
        """
        lengths = PROMPTS.draw(count, seed, LONGEST_PROMPT)
        places = range(seed % STRIDE, STRIDE * count, STRIDE)
        wanted = [list(tokens[place : place + max(2, length)]) for place, length in zip(places, lengths, strict=True)]
        return cls(wanted, [max(2, one) for one in ANSWERS.draw(count, seed + 1, LONGEST_ANSWER)])

    def load(self, seat: HttpSeat, window_s: float, warm_up_s: float) -> Load:
        """As streams; a rate or a concurrency is still to be set."""
        made = [seat.call(*both, True) for both in zip(self.prompts, self.answers, strict=True)]
        return Load(HOST, seat.port, made, duration_s=window_s, warm_up_s=warm_up_s)


def curve(seat: HttpSeat, mixture: Callable[[int], Mixture], window_s: float, warm_up_s: float) -> list[Point]:
    """A point for each fraction of the capacity; raises PeerError where the closed loop fails.

    `mixture` gives another one for each number from 0.
    """
    parts = count()
    closed = measure(replace(mixture(next(parts)).load(seat, window_s, warm_up_s), concurrency=CLIENTS))
    if closed.statuses.total() != closed.statuses["200"] or not closed.per_s["requests"]:
        raise PeerError(f"of {closed.requests} requests failed {dict(closed.statuses)}")

    def point(fraction: float) -> Point:
        rate, part = fraction * closed.per_s["requests"], next(parts)
        drawn = mixture(part)
        tokens = sum(drawn.answers) / len(drawn.answers)
        load = drawn.load(seat, window_s, warm_up_s)
        tally = measure(replace(load, rate_per_s=rate, seed=part, objective=LEVEL, timeout_s=GIVE_UP_S))
        return Point(
            rate_per_s=rate,
            good=tally.good / max(1, tally.requests),
            tokens_per_s=tokens * tally.per_s["requests"],
            first_token_ms=tally.first_token.percentile_ms(90),
            token_ms=tally.between_tokens.percentile_ms(90),
        )

    points = [point(fraction) for fraction in FRACTIONS]
    lowest = FRACTIONS[0]
    while goodput(points) == 0 and lowest > LOWEST_FRACTION:
        lowest /= 2
        points.insert(0, point(lowest))
    return points


def goodput(points: Sequence[Point], share: float = 1 - LEVEL.bad_share) -> float:
    """The highest rate at which `share` of the requests are good; 0 where no point has so many."""
    rising = sorted(points, key=lambda one: one.rate_per_s)
    best = max((one.rate_per_s for one in rising if one.good >= share), default=0.0)
    for before, after in pairwise(rising):
        if before.rate_per_s == best and after.good < share:
            way = (before.good - share) / (before.good - after.good)
            return before.rate_per_s + way * (after.rate_per_s - before.rate_per_s)
    return best
