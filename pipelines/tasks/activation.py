"""Activation: from a classifier's logits to its scores."""

from typing import Literal

import numpy as np

Activation = Literal["sigmoid", "softmax", "none"]


def activate(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Scores of the shape and type of `logits`; softmax is over the last axis."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        scores: np.ndarray = 0.5 * (1 + np.tanh(logits / 2))  # the logistic function, in a form that cannot overflow
        return scores
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
