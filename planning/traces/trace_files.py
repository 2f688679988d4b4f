"""Trace files: the request log of a running cluster, and a CSV of arrivals."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pipelines.errors import ConfigurationError
from pipelines.misfit import nearest, shown
from planning.bounds import MAX_REQUESTS, MAX_ROWS, MAX_TOKENS
from planning.traces.trace import DAY_S, Sizes, Trace

MALFORMED = frozenset((400, 401, 403, 404, 405, 411, 413, 414, 415, 422))
"""Statuses of requests that cost the model nothing, however often they come."""
MAX_DEADLINE_S = DAY_S
_COLUMNS: dict[str, tuple[str, float, float]] = {
    "tokens": ("tokens", 1, MAX_TOKENS),
    "rows": ("rows", 1, MAX_ROWS),
    "written_tokens": ("written", 0, MAX_TOKENS),
    "deadline_s": ("deadlines_s", 1e-3, MAX_DEADLINE_S),
    "bulk": ("bulk", 0, 1),
}
_TYPES = {"deadlines_s": np.float64, "bulk": np.bool_}


@dataclass
class _Found:
    """What is read so far; times are seconds since 1970, or since any other moment."""

    times_s: list[float] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)
    overheads_s: list[float] = field(default_factory=list)
    is_dated: bool = False

    def trace(self, name: str, sizes: Sizes, seed: int) -> Trace:
        if not self.times_s:
            raise ConfigurationError(f"{name} has no request")
        times = np.asarray(self.times_s)
        order = np.argsort(times, kind="stable")
        known: dict[str, Any] = {
            field: np.asarray(values, _TYPES.get(field, np.int64))[order] for field, values in self.columns.items()
        }
        first_s = float(times[order[0]])
        arrivals = times[order] - first_s
        if arrivals[-1] > 31 * DAY_S:
            raise ConfigurationError(f"{name} spans {arrivals[-1] / DAY_S:,.0f} days; allowed: at most 31")
        return sizes.trace(
            name,
            float(arrivals[-1]) + 1.0,
            arrivals,
            seed,
            overhead_s=median(self.overheads_s) if self.overheads_s else None,
            day_at_s=first_s % DAY_S if self.is_dated else 0.0,
            **known,
        )


def from_file(path: Path, sizes: Sizes, seed: int, *, task: str, longest: int) -> Trace:
    """The trace in a file. Of a log, the lines of `task` count; what its requests read beyond `longest` tokens, the
    longest row of the model, was several rows. Raises ConfigurationError that names file and line.
    """
    readers: dict[str, Callable[..., _Found]] = {".jsonl": _read_log, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(f"--trace is {str(path)!r}; allowed: a file that ends in .jsonl or .csv")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = reader(file, str(path), task, longest)
    except FileNotFoundError:
        raise ConfigurationError(f"--trace: {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--trace: {path} cannot be read: {error}") from None
    return found.trace(str(path), sizes, seed)


# --- a log of requests ---


def _read_log(lines: Iterator[str], name: str, task: str, longest: int) -> _Found:
    found, tasks, unread = _Found(is_dated=True), set[str](), list[int]()
    tokens, rows, written = (found.columns.setdefault(one, []) for one in ("tokens", "rows", "written"))
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry: dict[str, Any] = json.loads(line)
            tasks.add(entry["task"])
            if entry["task"] != task or int(entry["status"]) in MALFORMED:
                continue
            total_s = float(entry["total_s"])
            ended_s = _seconds(entry["time"])
            read = int(entry["read_tokens"])
            n_written = int(entry["written_tokens"])
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"{name}:{number}: no line of a request log ({error!r})") from None
        if read == 0:  # refused before it was read: as large as any other
            unread.append(len(tokens))
        split = max(1, math.ceil(read / longest))
        found.times_s.append(ended_s - total_s)
        tokens.append(max(1, math.ceil(read / split)))
        rows.append(min(split, MAX_ROWS))
        written.append(n_written)
        if entry["status"] == 200:
            found.overheads_s.append(max(0.0, total_s - float(entry["queue_s"]) - float(entry["inference_s"])))
        _check_count(name, len(tokens))
    if not tokens:
        raise ConfigurationError(f"{name} has no request of {task}; it has: {', '.join(sorted(tasks)) or 'none'}")
    _fill(unread, tokens, rows, written)
    return found


def _fill(unread: list[int], *columns: list[float]) -> None:
    """Give each request of unknown size that of a request that was read, in turn."""
    is_unread = set(unread)
    known = [index for index in range(len(columns[0])) if index not in is_unread] if unread else []
    for place, index in enumerate(unread):
        for column in columns:
            if known:
                column[index] = column[known[place % len(known)]]


# --- a CSV ---


def _read_csv(lines: Iterator[str], name: str, _task: str, _longest: int) -> _Found:
    rows = csv.DictReader(lines)
    given = [one.strip() for one in rows.fieldnames or ()]
    if "time" not in given:
        raise ConfigurationError(f"{name}:1: the header lacks `time`; allowed beside it: {', '.join(_COLUMNS)}")
    for one in given:
        if one != "time" and one not in _COLUMNS:
            raise ConfigurationError(
                f"{name}:1: no column is called {one!r}{nearest(one, _COLUMNS)}; allowed: time, {', '.join(_COLUMNS)}"
            )
    rows.fieldnames = given
    found = _Found()
    for row in rows:
        where = f"{name}:{rows.line_num}"
        try:
            found.times_s.append(_seconds(row["time"]))
        except (ValueError, TypeError):
            raise ConfigurationError(
                f"{where}: time is {shown(row['time'])}; allowed: seconds, or a time of ISO 8601"
            ) from None
        for column in given:
            if column != "time":
                field, least, most = _COLUMNS[column]
                found.columns.setdefault(field, []).append(_number(row[column], column, where, least, most))
        _check_count(name, len(found.times_s))
    found.is_dated = bool(found.times_s) and min(found.times_s) > 365 * DAY_S
    return found


def _number(text: Any, column: str, where: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except (ValueError, TypeError):
        value = math.nan
    if not least <= value <= most or (column != "deadline_s" and value % 1):
        raise ConfigurationError(f"{where}: {column} is {shown(text)}; allowed: {least:g} to {most:,.10g}")
    return value


def _seconds(text: Any) -> float:
    """Seconds as they stand, or a time of ISO 8601 since 1970; without a zone it is UTC. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        at = datetime.fromisoformat(str(text).strip())
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds


def _check_count(name: str, count: int) -> None:
    if count > MAX_REQUESTS:
        raise ConfigurationError(f"{name} has more than {MAX_REQUESTS:,} requests; allowed: that many")
