"""Traffic: which share of a task's requests another of its models answers. A file has a line for each such model.

    text-classification large 5        five of a hundred requests to /text-classification go to its model `large`
    text-classification sticky         each client, by its key or its address, always gets the same of them

HAProxy reads a map made of it: upper bounds of a number that it draws from 0 to 9999 for a request, and which tasks are
sticky. The standard library alone: node.py runs without packages.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PARTS = 10_000
"""What a draw is out of: shares have steps of a hundredth of a percent."""
STICKY = "sticky"
_SHARE = re.compile(r"(?P<task>[a-z0-9-]+) (?P<model>[a-z0-9][a-z0-9-]*) (?P<percent>\d{1,3}(\.\d{1,2})?)")
_STICKY = re.compile(rf"(?P<task>[a-z0-9-]+) {STICKY}")


class TrafficError(Exception):
    """A file of shares that cannot be read."""


@dataclass
class Split:
    """That of one task: parts of PARTS by model, and whether a client stays with one of them."""

    parts: dict[str, int] = field(default_factory=dict)
    sticky: bool = False


def read_traffic(file: Path) -> dict[str, Split]:
    """The splits of a file by task; raises TrafficError for the first line that is none."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrafficError(f"{file} cannot be read: {error}") from None
    splits: dict[str, Split] = {}
    for number, line in enumerate(lines, start=1):
        words = " ".join(line.split("#")[0].split())
        if not words:
            continue
        where = f"{file}, line {number}"
        if found := _STICKY.fullmatch(words):
            splits.setdefault(found["task"], Split()).sticky = True
        elif found := _SHARE.fullmatch(words):
            parts = splits.setdefault(found["task"], Split()).parts
            if found["model"] in parts:
                raise TrafficError(f"{where}: {found['task']} {found['model']} has a line before it")
            parts[found["model"]] = round(float(found["percent"]) * PARTS / 100)
            if sum(parts.values()) > PARTS:
                raise TrafficError(f"{where}: the shares of {found['task']} are more than 100 percent")
        else:
            raise TrafficError(f"{where}: {words[:80]!r}; allowed: TASK MODEL PERCENT, or TASK {STICKY}")
    return splits


def map_of(splits: Mapping[str, Split]) -> bytes:
    """The file as HAProxy reads it: `TASK.MODEL BOUND`, and `TASK 1` of a sticky one."""
    lines = []
    for task, split in splits.items():
        if split.sticky:
            lines.append(f"{task} 1\n")
        bound = 0
        for model, parts in split.parts.items():
            bound += parts
            lines.append(f"{task}.{model} {bound}\n")
    return "".join(lines).encode()
