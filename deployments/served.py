"""Served: what a running cluster serves, as its gateway says, for `sextet models`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deployments.ask import get

COLUMNS = ("route", "model", "version", "precision", "parity", "memory", "replicas")
MIB = 2**20


def served(url: str, key: str | None = None) -> list[dict[str, Any]]:
    """The models by route, a task's default before its others; raises AskError."""
    catalog = get(f"{url.rstrip('/')}/", key=key)
    return [one for task in catalog["tasks"] for one in (task, *task["others"])]


def table(models: Sequence[Mapping[str, Any]]) -> str:
    """A line for each."""
    rows = [COLUMNS, *map(_row, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (one["route"], *_cells(one["model"]), str(one["replicas"]))


def _cells(model: Mapping[str, Any] | None) -> Iterator[str]:
    if model is None:
        yield from ("-",) * 5
        return
    parity = model["parity"]
    yield from (model["id"], model["version"], model["precision"])
    yield f"{'passed' if parity['passed'] else 'failed'} ({100 * parity['agreement']:.1f}%)"
    yield f"{model['memory_bytes'] / MIB:.0f} MiB"
