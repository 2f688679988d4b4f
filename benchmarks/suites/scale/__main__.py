"""Scale: what replicas that come and go hold, what planning them says, and data sets in bulk.

    python -m benchmarks.suites.scale                      what `make bench-scale` does, within 30 minutes
    python -m benchmarks.suites.scale --only plan_error    the parts of these names
    python -m benchmarks.suites.scale --quick              shorter: whether it works

A part is a function that notes figures; each module of this package says what its own ones mean.
"""

from collections.abc import Callable, Mapping

from benchmarks import Say
from benchmarks.figures.bars import SCALE_FIGURES
from benchmarks.suites.scale.batch import measure_batch
from benchmarks.suites.scale.level import measure_level
from benchmarks.suites.scale.nodes import measure_nodes
from benchmarks.suites.scale.plan import measure_error, measure_replicas
from benchmarks.suites.scale.zero import measure_zero
from benchmarks.suites.suite import Findings, Options, main

PARTS: Mapping[str, Callable[[Findings, bool, Say], None]] = {
    "level": measure_level,
    "zero": measure_zero,
    "plan_error": measure_error,
    "plan_replicas": measure_replicas,
    "batch": measure_batch,
    "nodes": measure_nodes,
}
"""By name; each takes the findings, whether to be quick, and whom to tell of its progress. Raises SextetError."""


def run(options: Options, say: Say) -> Findings:
    """The parts that are asked for; raises SextetError."""
    findings = Findings()
    for part in options.chosen(PARTS):
        say(f"part {part}")
        PARTS[part](findings, options.quick, say)
    return findings


if __name__ == "__main__":
    main("scale", "Replicas that come and go.", run, SCALE_FIGURES, parts=tuple(PARTS))
