"""Refusals: HAProxy counts what it refuses by itself, by application, status and reason.

    hdr x-sextet-counted %[<refused http-translation 429 overloaded>,bytes(20)]    in a line (lines.py), by `counted`
    hdr x-sextet-counted %[sc_inc_gpc(7,2),bytes(20)]                              in the written file

An answer counts itself while HAProxy writes it: the value of that header increments a counter, exactly whichever thread
does so, and is empty, so that HAProxy leaves the header out. Nothing is evaluated for requests that are answered. The
counters lie in rows of a stick table. A connection looks its rows up once, when it is accepted.

A process that takes over is given what the one before it has counted, in the variable VARIABLE:

    EPOCH translation:429:overloaded=17;none:401:key=3;...    in the order of the counters, which begin at 0 nonetheless

The one before may count a little more until it is replaced, which is lost: within an epoch numbers may fall, and
whoever reads them takes the largest. HAProxy that starts without one before it begins a new epoch at 0. The standard
library alone (node.py).
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deployments.ingress.haproxy import command

Kind = tuple[str, str, str]
"""Application, status, reason."""
ANY = "none"
"""In place of an application: the path was not looked at yet, or leads to none."""
NO_STATUS = "none"
"""Of a connection that is closed without an answer."""
TABLE = "sextet_refusals"
VARIABLE = "proc.sextet_refusals"
TRACK = "<track refusals>"
"""A line of each frontend, before any that counts."""
FIRST_SLOT = 2  # access.py has 0, limits.py 1
ROW = 100  # counters that HAProxy lets a row have
_MARK = re.compile(r"<refused (?:(?:http|grpc)-)?(\S+) (\w+) (\w+)>")
_TEXT = re.compile(rf"^{re.escape(VARIABLE)}: type=str value=<(\w+) (\S*)>$", re.MULTILINE)
_ROW = re.compile(r" key=(\d+) .*")


@dataclass(frozen=True)
class Counts:
    """What HAProxy has counted since an epoch began."""

    epoch: str = "0"
    of: Mapping[Kind, int] = field(default_factory=dict)

    @classmethod
    def new(cls) -> "Counts":
        """Nothing yet."""
        return cls(f"{time.time_ns():x}")


def counted(status: int | str, reason: str, application: str = ANY) -> str:
    """What makes an answer of HAProxy count itself, for the arguments of `http-request return` and `http-error`.

    `application` may be its name, that of a backend of it, or a mark of either.
    """
    return f"hdr x-sextet-counted %[{counter(status, reason, application)},bytes(20)]"


def counter(status: int | str, reason: str, application: str = ANY) -> str:
    """The same as an expression, for other lines: who evaluates it counts."""
    return f"<refused {application} {status} {reason}>"


def with_counters(text: str, earlier: Counts) -> str:
    """`text` with counters in place of their marks, and what they need."""
    numbers: dict[Kind, int] = {}

    def fetch(found: re.Match[str]) -> str:
        number = numbers.setdefault((found[1], found[2], found[3]), len(numbers))
        return f"sc_inc_gpc({number % ROW},{FIRST_SLOT + number // ROW})"

    text = _MARK.sub(fetch, text)
    slots = range(FIRST_SLOT, FIRST_SLOT + -(-len(numbers) // ROW))
    tracks = "".join(f"    tcp-request connection track-sc{slot} str({slot}) table {TABLE}\n" for slot in slots)
    text = text.replace(f"    {TRACK}\n", tracks)
    if not numbers:
        return text
    before = ";".join(f"{':'.join(kind)}={earlier.of.get(kind, 0)}" for kind in numbers)
    process = f'    tune.stick-counters {slots.stop}\n    set-var {VARIABLE} str("{earlier.epoch} {before}")\n'
    text = re.sub(r"^global\n", lambda header: header[0] + process, text, count=1, flags=re.MULTILINE)
    return f"{text}backend {TABLE}\n    stick-table type string len 8 size {len(slots)} store gpc({ROW})\n"


def read_counts(admin_socket: Path) -> Counts | None:
    """Those of the HAProxy that listens there; None where none does, or one that does not count."""
    answer = command(admin_socket, f"get var {VARIABLE}; show table {TABLE}")
    if (found := _TEXT.search(answer)) is None:
        return None
    rows = {int(row[1]): [int(n) for n in re.findall(r" gpc\d+=(\d+)", row[0])] for row in _ROW.finditer(answer)}
    counts: dict[Kind, int] = {}
    for number, entry in enumerate(found[2].split(";")):
        kind, _, before = entry.rpartition("=")
        application, status, reason = kind.rsplit(":", 2)
        row = rows.get(FIRST_SLOT + number // ROW)  # there is none before the first connection
        counts[application, status, reason] = int(before) + (row[number % ROW] if row else 0)
    return Counts(found[1], counts)
