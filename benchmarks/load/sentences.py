"""Sentences: plain English for models that write, put together from parts; random words have no next word."""

import random
from collections.abc import Callable, Sequence

WHO = [
    "Tom",
    "Mary",
    "My brother",
    "Our teacher",
    "The old man",
    "Her friend",
    "The doctor",
    "His mother",
    "A young woman",
    "The boy",
]
DOES = [
    "wants to buy",
    "is looking for",
    "forgot to bring",
    "has never seen",
    "would like to sell",
    "often talks about",
]
WHAT = [
    "a new car",
    "the red book",
    "a small house near the sea",
    "some bread",
    "the letter",
    "a warm coat",
    "the keys",
]
WHEN = ["today", "every morning", "after work", "before dinner", "in the summer", "on Sunday", "because it is cheap"]


def sentences(count: int, seed: int) -> list[str]:
    """Different ones, of six to fifteen words; the same seed gives the same ones."""
    chosen = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made[f"{' '.join(chosen.choice(part) for part in (WHO, DOES, WHAT, WHEN))}."] = None
    return list(made)


def passages(count: int, tokens: int, seed: int, encode: Callable[[str], Sequence[int]]) -> list[list[int]]:
    """Token ids of texts of many sentences, each cut to exactly `tokens`."""
    made = []
    for index in range(count):
        text = " ".join(sentences(max(4, tokens // 4), seed + index))
        ids = list(encode(text))[:tokens]
        assert len(ids) == tokens, "sentences have more than four tokens"
        made.append(ids)
    return made
