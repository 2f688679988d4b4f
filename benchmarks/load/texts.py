"""Texts of a load: lines of a file, words strung together to lengths in tokens, or plain sentences.

Lengths come from a named distribution:

    fixed:128             every text has 128 tokens
    uniform:16-256        any length between, both included
    lognormal:24,200      median 24, 95th percentile 200: most texts are short and a few very long, as in production
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.tokenizer import Tokenizer

FORMS = "fixed:TOKENS, uniform:LOWEST-HIGHEST, lognormal:MEDIAN,P95"
_P95_DEVIATIONS = 1.6448536269514722  # of a normal distribution


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens; `named` is the text that it was parsed from."""

    named: str
    _draw: Callable[[np.random.Generator, int], np.ndarray]

    @classmethod
    def parse(cls, named: str) -> "Lengths":
        """Raises ConfigurationError for a name that is none of FORMS."""
        kind, _, arguments = named.partition(":")
        numbers = [int(one) for one in re.split("[-,]", arguments)] if re.fullmatch(r"\d+([-,]\d+)?", arguments) else []
        match kind, numbers:
            case "fixed", [tokens] if tokens > 0:
                return cls(named, lambda random, count: np.full(count, tokens))
            case "uniform", [lowest, highest] if 0 < lowest <= highest:
                return cls(named, lambda random, count: random.integers(lowest, highest, count, endpoint=True))
            case "lognormal", [median, p95] if 0 < median < p95:
                deviation = np.log(p95 / median) / _P95_DEVIATIONS
                return cls(named, lambda random, count: random.lognormal(np.log(median), deviation, count).round())
        raise ConfigurationError(f"the lengths are {named!r}; allowed: {FORMS}")

    def draw(self, count: int, seed: int, longest: int) -> list[int]:
        """`count` lengths from 1 to `longest` tokens; the same seed gives the same ones."""
        drawn = self._draw(np.random.default_rng(seed), count)
        return [int(one) for one in np.clip(drawn, 1, longest)]


CountTokens = Callable[[Sequence[str]], list[int]]
"""The length of each text as the model will read it, special tokens included."""

MOST_TOKENS = 12  # that any tokenizer makes of one of WORDS

_LINES = (
    "the of and to in is that it was for on are with as be at one have this from by but some what there we can out "
    "other were all your when up use how said an each she which do their time if will way about many then them would "
    "write like so these her long make thing see him two has look more day could go come did my sound no most number "
    "who over know water than call first people may down side been now find any new work part take get place made "
    "live where after back little only round man year came show every good me give our under name very through just "
    "form much great think say help low line before turn cause same mean differ move right boy old too does tell set "
    "three want air well also play small end put home read hand port large spell add even land here must big high "
    "such follow act why ask men change went light kind off need house picture try us again animal point mother world "
    "near build self earth father head stand own page should country found answer school grow study still learn plant "
    "cover food sun four thought let keep eye never last door between city tree cross since hard start might story "
    "saw far sea draw left late run while press close night real life few stop open seem together next white children"
)
WORDS = _LINES.split()


def from_file(path: Path) -> list[str]:
    """The non-empty lines of a UTF-8 file; raises ConfigurationError where there are none."""
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    if not texts:
        raise ConfigurationError(f"{path} has no text; allowed: one text per line")
    return texts


def synthetic(lengths: Lengths, count: int, seed: int, count_tokens: CountTokens, longest: int) -> list[str]:
    """`count` texts whose lengths are drawn from `lengths`, cut at `longest`; the same seed gives the same texts.

    A text has at least one word. It can be one token short where no word fits into the rest.
    """
    alone, twice = count_tokens(WORDS), count_tokens([f"{word} {word}" for word in WORDS])
    costs = {word: both - one for word, one, both in zip(WORDS, alone, twice, strict=True)}
    special = 2 * alone[0] - twice[0]
    chosen = random.Random(seed)
    return [_text(tokens - special, costs, chosen) for tokens in lengths.draw(count, seed, longest)]


def _text(tokens: int, costs: dict[str, int], chosen: random.Random) -> str:
    words = [chosen.choice(WORDS)]
    left = tokens - costs[words[0]]
    while left > 0:
        fitting = WORDS if left >= MOST_TOKENS else [word for word in WORDS if costs[word] <= left]
        if not fitting:
            break
        words.append(chosen.choice(fitting))
        left -= costs[words[-1]]
    return " ".join(words)


def counter(artifact: ModelArtifact | None) -> CountTokens:
    """Tokens of an artifact's own tokenizer; where there is none, words."""
    if artifact is None:
        return lambda texts: [len(text.split()) for text in texts]
    tokenizer = Tokenizer(artifact)
    return lambda texts: [len(encoding) for encoding in tokenizer.encode(texts, offsets=False)]


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
    """`count` different sentences of six to fifteen words; the same seed gives the same ones."""
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
