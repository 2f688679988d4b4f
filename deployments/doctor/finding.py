"""What `sextet doctor` found: one line each for people, the same as JSON for scripts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]
"""`note`: what is absent or uncommon and disturbs nothing that was asked for; `error`: it prevents serving."""
CLUSTER = "cluster.yaml"
"""The section about what the file asks for."""
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Finding:
    """One line. `section` and `name` say where, `text` what is there, `remedy` what to do about it; `facts` hold the
    numbers and names of `text` for scripts.
    """

    section: str
    name: str
    text: str
    level: Level = "ok"
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def line(self, width: int) -> str:
        return f"  {self.level:8} {self.name:{width}}  {self.text}{f'; {self.remedy}' if self.remedy else ''}"


@dataclass(frozen=True)
class Report:
    """All findings in the order of the page; those of a section are neighbours."""

    findings: Sequence[Finding]

    @property
    def exit_code(self) -> int:
        """1 where something prevents serving, else 0."""
        return int(self.count("error") > 0)

    def count(self, level: Level) -> int:
        return sum(one.level == level for one in self.findings)

    def text(self) -> str:
        """The page."""
        width = max(len(one.name) for one in self.findings)
        lines = []
        for section, findings in groupby(self.findings, key=lambda one: one.section):
            lines += [section, *(one.line(width) for one in findings), ""]
        return "\n".join([*lines, self._verdict()])

    def to_json(self) -> str:
        """The same as one JSON document: `ok`, how many `errors` and `warnings`, and the `findings`."""
        findings = [
            {"section": one.section, "name": one.name, "level": one.level, "text": one.text, "remedy": one.remedy}
            | {"facts": dict(one.facts)}
            for one in self.findings
        ]
        counts = {"ok": self.exit_code == 0, "errors": self.count("error"), "warnings": self.count("warning")}
        return json.dumps({**counts, "findings": findings}, ensure_ascii=False, indent=2, allow_nan=False)

    def _verdict(self) -> str:
        errors, warnings = (f"{n} {kind}{'s' * (n != 1)}" for kind in ("error", "warning") for n in (self.count(kind),))
        return f"{errors}, {warnings}"


def gib(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB else f"{n_bytes / MIB:.0f} MiB"
