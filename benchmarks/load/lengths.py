"""Lengths: how many tokens the synthetic texts of a load have, from a named distribution.

fixed:128                every text 128 tokens
uniform:16-256           any length between, both included
lognormal:24,200         median 24, 95th percentile 200: most texts short, a few very long, as in production
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.errors import ConfigurationError

FORMS = "fixed:TOKENS, uniform:LOWEST-HIGHEST, lognormal:MEDIAN,P95"
_P95_DEVIATIONS = 1.6448536269514722  # of a normal distribution


@dataclass(frozen=True)
class Lengths:
    """A distribution; `named` is how it was asked for."""

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
