"""Bounds of what a user passes, checked before it costs anything."""

import math

from pipelines.errors import ConfigurationError

MAX_REQUESTS = 20_000_000
MAX_TOKENS = 1_000_000
MAX_ROWS = 65_536
MAX_REPLICAS = 100_000


def bounded(name: str, value: float, least: float, most: float) -> float:
    """`value`; raises ConfigurationError where it is no number from `least` to `most`."""
    if not (isinstance(value, int | float) and math.isfinite(value) and least <= value <= most):
        raise ConfigurationError(f"{name} is {value:,.10g}; allowed: {least:,.10g} to {most:,.10g}")
    return value
