"""Comparison: the differences and answers of an export beside PyTorch's, and the verdict on them.

Differences are absolute, on logits of unit scale: both sides are divided by the reference's standard deviation where
it is above one. An answer is confident where the reference finds it at least twice as likely as the second best.

Plain fp32 must be exact. Other precisions round, and three things are asked of them:

* Confident answers are equal.
* A model that is confident of nothing is judged by all its answers. One that it finds almost as likely as its own is no
  disagreement: rounding decides between the two, and so does the next training run.
* From input to input, the error varies little beside the logits themselves. This finds a broken graph under a head that
  is confident of nothing: there a wrong answer falls behind by as little as a right one. An error that is the same for
  all inputs, as rounding leaves it, counts by what it does to answers.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.parity.generation import Perplexity
from pipelines.runtime.artifact import Parity

TOLERANCE = 1e-4
LEAD = math.log(2)
ALMOST = 0.1  # of probability: how far an answer may fall behind
_AGREEMENT = 0.98
_LEAST_AGREEMENT = {"int4": 0.5}
"""Finds broken graphs; perplexity measures the rest, as one close choice changes all later tokens."""
_MOST_NOISE, _MOST_NOISE_UNDECIDED = 0.5, 0.25
"""How far the error may vary, as a share of how far the reference's logits do. Eight bits leave 0.05 to 0.15. With
confident answers it finds what they do not show; without them, it is what tells a broken graph.
"""
_ROUGH = ("int4",)  # its error is judged by perplexity
_SLIGHT_NOISE = 4 * TOLERANCE  # on unit scale: it hides no answer
MOST_SURPRISED = {"int8": 0.15, "int4": 0.5}
"""The largest increase of perplexity over PyTorch's, by precision, for models that generate."""
_NAMED = 20


@dataclass
class _Sums:
    """Sums over rows of numbers, from which their spread follows."""

    rows: int = 0
    columns: int = 1
    squares: float = 0.0
    totals: Any = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add values (rows, columns)."""
        self.rows += len(values)
        self.columns = values.shape[1]
        self.squares += float(np.square(values).sum())
        self.totals = self.totals + values.sum(0)

    @property
    def spread(self) -> float:
        """The root mean square of the values around the mean of their column."""
        rows = max(1, self.rows)
        return math.sqrt(max(0.0, self.squares - float(np.square(self.totals).sum()) / rows) / (rows * self.columns))


@dataclass
class Comparison:
    """The comparisons so far; `confident`, `agreed` and `almost` have an entry for each label, span or token."""

    largest: float = 0.0
    unit: float = 1.0
    confident: list[bool] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)
    almost: list[bool] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)
    perplexity: Perplexity = field(default_factory=Perplexity)
    errors: _Sums = field(default_factory=_Sums)
    reference: _Sums = field(default_factory=_Sums)

    def differ(self, reference: np.ndarray, exported: np.ndarray, *, compete: bool) -> None:
        """Record the difference of logits (answers, logits), which may `compete` in a softmax; `unit` becomes their
        scale.
        """
        self.unit = max(1.0, float(reference.std()))
        # max() ignores NaN: an output with NaN counts as infinitely different.
        difference = float(np.abs(reference - exported).max()) if np.isfinite(exported).all() else math.inf
        self.largest = max(self.largest, difference / self.unit)
        sides = [one.astype(np.float64) for one in (reference, exported)]
        if compete:  # the same number on all of them changes no probability
            sides = [one - one.mean(1, keepdims=True) for one in sides]
        self.reference.add(sides[0])
        self.errors.add(sides[1] - sides[0])

    def decide(
        self, name: str, lead: float, expected: object, got: object, shortfall: float, behind: float | None = None
    ) -> None:
        """Record one answer. In logits of the reference, `lead` is that of the best over the second best answer, and
        `shortfall` is how far `got` lies behind `expected`; `behind` is the same in probability, where there is one.
        """
        equal = expected == got or shortfall <= 4 * TOLERANCE * self.unit
        self.confident.append(lead >= LEAD)
        self.agreed.append(equal)
        self.almost.append(equal or (behind is not None and behind <= ALMOST and shortfall <= LEAD))
        if not equal:
            sure = "confident" if lead >= LEAD else "close"
            self.disagreements.append(f"{name}: {expected} became {got} ({sure})")

    def verdict(self, precision: str, inputs: int, *, exact: bool) -> Parity:
        """Whether an export with this precision passes; `exact` asks for equal answers everywhere."""
        confident, agreed = np.array(self.confident), np.array(self.agreed)
        named = tuple(sorted(self.disagreements, key=lambda name: name.endswith("(close)"))[:_NAMED])
        counted = agreed[confident] if confident.any() else np.array(self.almost)
        agreement = float(counted.mean())
        if exact:
            threshold = f"logits within {TOLERANCE:g}, and equal answers everywhere"
            passed = self.largest <= TOLERANCE and bool(agreed.all())
            return Parity(passed, inputs, self.largest, agreement, threshold, named, self.perplexity.values())
        least = _LEAST_AGREEMENT.get(precision, _AGREEMENT)
        almost = "" if confident.any() else f", or at most {ALMOST:g} and half less likely"
        kind = "confident answers" if confident.any() else "answers, none of them confident,"
        required = [f"at least {least:.0%} of {len(counted)} {kind} equal{almost}"]
        passed = agreement >= least and bool(np.isfinite(self.largest))
        error, varies = self.errors.spread, self.reference.spread
        if precision not in _ROUGH:
            most = _MOST_NOISE if confident.any() else _MOST_NOISE_UNDECIDED
            found = error / max(varies, 1e-9)
            required.append(f"errors that vary by at most {most:.0%} of what the logits do (here {found:.0%})")
            passed = passed and error <= max(most * varies, _SLIGHT_NOISE * self.unit)
        parity = Parity(passed, inputs, self.largest, agreement, "", named, self.perplexity.values())
        increase = parity.perplexity_increase
        if increase is not None and (surprised := MOST_SURPRISED.get(precision)) is not None:
            required.append(f"perplexity at most {surprised:.0%} above PyTorch's")
            passed = passed and increase <= surprised
        return Parity(passed, inputs, self.largest, agreement, ", and ".join(required), named, self.perplexity.values())
