"""Texts of a load: lines of a file, or real words strung together to lengths in tokens."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.load.lengths import Lengths
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.tokenizer import Tokenizer

CountTokens = Callable[[Sequence[str]], list[int]]
"""The length of each text as the model will read it, special tokens included."""

MOST_TOKENS = 12  # of one of WORDS in any tokenizer

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

    A text is one token off where no word fits into what is left of it, and at least one word long.
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
