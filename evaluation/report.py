"""Report: the scores of systems on some rows, as a table for the terminal, as Markdown for a card, and as JSON."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evaluation.scores import Scored, interval
from export.card import aligned, piped, with_results

_SECTION = re.compile(r"\n## Measured on .*?(?=\n## (?!Measured on )|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Report:
    """`measured` are the scores by system, on the same `rows` of the file `data`, whose sha256 in hex is `digest`.

    `settings` tell which rows were drawn and which parameters were sent, where these are not the defaults.
    """

    data: str
    digest: str | None
    rows: int
    measured: Mapping[str, Scored]
    resamples: int
    settings: tuple[str, ...] = ()

    def name(self, taken: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The name of this report beside the reports `taken` (by name, as `as_json`): its data and settings, and the
        sha256 where other data have that name already.
        """
        plain = _named(self.data, self.settings)
        earlier = taken.get(plain)
        if earlier is None or (isinstance(earlier, Mapping) and earlier.get("sha256") == self.digest):
            return plain
        return _named(self.data, (*self.settings, f"sha256 {self._short_digest}"))

    @property
    def _short_digest(self) -> str:
        return (self.digest or "unknown")[:16]

    @cached_property
    def scores(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        """System -> score -> its value and the ends of its 95% interval."""
        found: dict[str, dict[str, tuple[float, float, float]]] = {}
        for name, one in self.measured.items():
            draws = self._draws[name]
            found[name] = {score: (value, *interval(draws[score])) for score, value in one.values().items()}
        return found

    @cached_property
    def differences(self) -> dict[str, tuple[float, float, float]]:
        """The scores of the last system minus those of the first, with paired bootstrap intervals."""
        if len(self.measured) < 2:
            return {}
        first, *_, last = self.measured
        common = [score for score in self.scores[first] if score in self.scores[last]]
        return {
            score: (
                self.scores[last][score][0] - self.scores[first][score][0],
                *interval(self._draws[last][score] - self._draws[first][score]),
            )
            for score in common
        }

    @cached_property
    def _draws(self) -> dict[str, Any]:
        return {name: one.draws(self.resamples) for name, one in self.measured.items()}

    def as_json(self) -> dict[str, Any]:
        """Each score as [value, low, high]."""
        return {
            "rows": self.rows,
            "sha256": self.digest,
            "scores": {name: _rounded(found) for name, found in self.scores.items()},
            "difference": _rounded(self.differences),
            "labels": {
                name: {label: {k: round(v, 4) for k, v in row.items()} for label, row in one.table.items()}
                for name, one in self.measured.items()
                if one.table
            },
        }

    def text(self) -> str:
        """For the terminal."""
        lines = [f"{self.name()}: {self.rows} rows; in brackets 95% intervals from {self.resamples} bootstrap draws"]
        lines.append(aligned(list(self._table())))
        for name, one in self.measured.items():
            if one.table:
                lines += ["", aligned(list(_label_table(name, one)))]
        return "\n".join(lines)

    def markdown(self, name: str, pictures: Sequence[str]) -> str:
        """A section of a card, headed by `name`."""
        lines = [f"## Measured on {name}", ""]
        lines += [f"{self.rows} rows (sha256 {self._short_digest}); 95% intervals by bootstrap.", ""]
        lines.append(piped(list(self._table())))
        for name, one in self.measured.items():
            if one.table:
                lines += ["", piped(list(_label_table(name, one)))]
        lines += [line for picture in pictures for line in ("", f"![{picture.removesuffix('.png')}]({picture})")]
        return "\n".join(lines)

    def _table(self) -> Iterator[list[str]]:
        difference = self.differences
        yield ["score", *self.scores, *(["difference"] if difference else [])]
        for score in next(iter(self.scores.values())):
            cells = [_cell(found[score]) if score in found else "" for found in self.scores.values()]
            yield [score, *cells, *([_cell(difference[score], signed=True)] if score in difference else [])]


def _files(data: str) -> list[Path]:
    """The file of the data, or both files of parallel text; empty for a data set of the Hub."""
    parts = [data] if Path(data).exists() else data.split(",")
    return [Path(part.strip()) for part in parts if Path(part.strip()).is_file()]


def data_name(data: str) -> str:
    """The names of the files without their folders, or the whole name of a data set of the Hub."""
    return ", ".join(file.name for file in _files(data)) or data


def data_digest(data: str) -> str | None:
    """The sha256 of the concatenated files of the data; None for a data set of the Hub."""
    digest = hashlib.sha256()
    for path in _files(data):
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest() if _files(data) else None


def with_measured(
    card: str, report: Report, name: str, pictures: Sequence[str], *, task: str, model: str, column: str
) -> str:
    """The card of `model` with the report's section before its `Use`, in the place of an older one of the same name.

    The scores of the system `column` go into the metadata, too.
    """
    card = with_results(card, task, model, report.data, name, report.measured[column].values())
    heading = f"\n## Measured on {name}\n"
    older = [part for part in _sections(card) if not part.startswith(heading)]
    rest = _SECTION.sub("", card).rstrip() + "\n"
    sections = "".join(f"{part.rstrip()}\n" for part in [*older, f"\n{report.markdown(name, pictures)}\n"])
    before, use, after = rest.partition("\n## Use\n")
    return f"{before.rstrip()}\n{sections}{use}{after}" if use else f"{rest}{sections}"


def _named(data: str, settings: Sequence[str]) -> str:
    return f"{data} ({'; '.join(settings)})" if settings else data


def _sections(card: str) -> list[str]:
    found = "".join(_SECTION.findall(card))
    return [f"\n## Measured on {part}" for part in found.split("\n## Measured on ")[1:]]


def _rounded(scores: Mapping[str, tuple[float, float, float]]) -> dict[str, list[float]]:
    return {name: [round(number, 5) for number in numbers] for name, numbers in scores.items()}


def _cell(numbers: tuple[float, float, float], *, signed: bool = False) -> str:
    digits = 2 if max(map(abs, numbers)) > 1.5 else 4
    value, low, high = (f"{number:{'+' if signed else ''}.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]"


def _label_table(name: str, measured: Scored) -> Iterator[list[str]]:
    columns = list(next(iter(measured.table.values())))
    yield [f"label ({name})", *columns]
    for label, row in measured.table.items():
        yield [label, *(f"{row[one]:.4f}" if one != "rows" else f"{row[one]:.0f}" for one in columns)]
