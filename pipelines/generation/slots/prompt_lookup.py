"""PromptLookup: guesses the next tokens of a sequence from its own prompt and answer (prompt lookup decoding).

Summaries and rewritten texts copy. Where the last tokens of a sequence stood before, what followed them there may
follow again. The engine reads the guessed tokens together with the last one, in about the time of one, and keeps those
that would have been chosen: processors, samplers and grammars see each of them in turn.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipelines.generation.slots.decodings import Sample

_MATCHED = (3, 2)  # last tokens that must have stood before; the longer match is the better guess
_LONGEST_PAUSE = 32  # steps after which a sequence whose guesses were wrong is looked at again


class PromptLookup:
    """`tokens` bounds the tokens of a guess; 0 switches it off."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._pauses: tuple[Sample | None, int, int] = None, 0, 0  # of which sample, steps to wait, wrong guesses

    def guess(self, sample: Sample, room: int) -> np.ndarray:
        """The tokens that may follow the last one, (n,) int64, at most `room`; empty where nothing is likely."""
        nothing = np.empty(0, np.int64)
        most = min(self._tokens, room)
        if most < 1:
            return nothing
        of, wait, wrong = self._pauses
        if of is sample and wait:
            self._pauses = of, wait - 1, wrong
            return nothing
        ids = sample.state.ids[0]
        for size in _MATCHED:
            if len(ids) <= size:
                continue
            same = (sliding_window_view(ids[:-1], size) == ids[-size:]).all(axis=1)
            places = np.flatnonzero(same)
            if len(places):
                after = int(places[-1]) + size
                following: np.ndarray = ids[after : after + most].copy()
                return following
        return nothing

    def learn(self, sample: Sample, kept: int) -> None:
        """`kept` tokens of a guess were right. After wrong ones the sequence is left alone for a while."""
        of, _, wrong = self._pauses
        wrong = 0 if kept else (wrong if of is sample else 0) + 1
        self._pauses = sample, min(_LONGEST_PAUSE, 2**wrong) if wrong else 0, wrong
