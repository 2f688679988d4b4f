"""Turns: which waiting decoding is next, and which running ones are paused for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.generation.engine import Line
from pipelines.generation.slots.decodings import Decoding


@dataclass(frozen=True)
class Turns:
    """A decoding may be paused once it has decoded `turn_tokens` tokens in its slots; at most `max_paused` are."""

    turn_tokens: int
    max_paused: int

    def room(
        self, waiting: Sequence[Decoding], decoding: Sequence[Decoding], free: int
    ) -> tuple[Decoding, list[Decoding]] | None:
        """The first of the `waiting` that has used less, and the sequences to pause for it, beside `free` slots.

        None where that is not allowed. A paused decoding resumes only where it lags by a whole turn: else two would
        keep swapping their slots.
        """
        newcomer = next((one for one in waiting if not one.parked), None)
        paused = next((one for one in waiting if one.parked), None)
        n_paused = sum(bool(one.parked) for one in waiting)
        for candidate, lag in ((newcomer, 0.0), (paused, float(self.turn_tokens))):
            if candidate is None:
                continue
            allowed = self.max_paused - n_paused + bool(candidate.parked)
            chosen, needed = list[Decoding](), candidate.width - free
            for one in sorted(decoding, key=lambda one: one.share.order(), reverse=True):
                if needed <= 0 or len(chosen) >= allowed or one.share.order() <= candidate.share.order(lag):
                    break
                if one.turn_tokens >= self.turn_tokens:
                    chosen.append(one)
                    needed -= one.width
            if needed <= 0:
                return candidate, chosen
        return None


def candidates(line: Line[Decoding]) -> list[Decoding]:
    """The decodings that may be admitted next, in their order: of each share the paused ones and the first new one.

    The paused ones of a share came before its new ones.
    """
    found: list[Decoding] = []
    for of_share in line.ordered():
        for one in of_share:
            found.append(one)
            if not one.parked:
                break
    return found
