"""Perplexity: how surprised a generator is by text, before and after its export."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pipelines.generation.decoding.logits import log_softmax
from pipelines.generation.slots.causal import CausalSlots
from pipelines.runtime.session import InferenceSession


class Perplexity:
    """exp of the mean surprise, over all tokens that were observed, of the PyTorch model and of its export."""

    def __init__(self) -> None:
        self._surprises: list[np.ndarray] = []  # (tokens, 2) float64: reference, exported

    def observe(self, reference: np.ndarray, exported: np.ndarray, tokens: np.ndarray) -> None:
        """Logits (n, vocab) of both sides, and the tokens (n,) that came."""
        rows = np.arange(len(tokens))
        both = [-log_softmax(logits.astype(np.float64))[rows, tokens] for logits in (reference, exported)]
        self._surprises.append(np.stack(both, -1))

    def read(self, model: Any, session: InferenceSession, texts: Iterable[Sequence[int]]) -> None:
        """Let a decoder-only model and its slot graph read texts, token ids of at least two tokens."""
        import torch

        for ids in texts:
            with torch.no_grad():
                reference = model(torch.tensor([ids])).logits[0].numpy()
            decoder = CausalSlots(session, 1, len(ids))
            exported = decoder.read(0, np.asarray([ids], np.int64), np.zeros(1, np.int64), np.arange(len(ids)))[0]
            self.observe(reference[:-1], exported[:-1], np.asarray(ids[1:]))

    def values(self) -> tuple[float, float] | None:
        """Of the reference and of the export; None where nothing was observed."""
        if not self._surprises:
            return None
        reference, exported = np.exp(np.concatenate(self._surprises).mean(0))
        return float(reference), float(exported)
