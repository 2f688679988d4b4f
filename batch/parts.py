"""Parts: the units of work. A part is so many rows of one source, in order; its answers are written at once.

Where a part begins depends on its source and the plan alone, so every run cuts the same parts. A part also ends at
PART_CHARACTERS, which bounds what it takes of memory.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Any

import msgspec

from batch.args import BatchArgs
from batch.sources import Source
from evaluation.columns import SAME_MEANING
from evaluation.readers import Line, Row
from pipelines.errors import InvalidInputError, first_line
from pipelines.misfit import nearest, shown
from pipelines.tasks import TASKS
from pipelines.tasks.task import Task

PART_CHARACTERS = 16 * 2**20
LOOKED_AT = 1000  # rows, among which there must be a sound one


class Given(msgspec.Struct, frozen=True, array_like=True):
    """A row: `number` counts those of its source from 1. `problem` is why it has no `input`."""

    number: int
    where: str
    input: Any
    kept: dict[str, Any]
    problem: str | None = None


class Part(msgspec.Struct, frozen=True, array_like=True):
    """`source` and `number` are its place among the sources and in its own. `share` of the source is read by its end.

    A part that was finished before has `count` rows and none of them.
    """

    source: int
    number: int
    count: int
    share: float
    is_last: bool
    rows: list[Given]

    @property
    def place(self) -> "Place":
        return self.source, self.number


Place = tuple[int, int]


class Reading(msgspec.Struct, frozen=True):
    """How rows become parts. `columns` has the column of every field that is read."""

    task: str
    columns: dict[str, str | int]
    keep: tuple[str, ...]
    encoding: str
    rows: int

    @classmethod
    def of(cls, args: BatchArgs, source: Source) -> "Reading":
        """Columns that `args` leaves open follow from the first sound row. Raises InvalidInputError."""
        definition, problem = args.definition, "no rows"
        for number, ((where, row), _) in enumerate(source.lines(args.columns, args.encoding)):
            if not isinstance(row, ValueError):
                columns: dict[str, str | int] = dict(args.columns)
                for name in definition.text_fields:
                    if name not in columns:
                        columns[name] = _guessed(definition, name, row, where)
                columns = {**{name: name for name in args.optional_fields if name in row}, **columns}
                for column in (*columns.values(), *args.keep):
                    _require(str(column), row, where)
                return cls(args.task, columns, args.keep, args.encoding, args.part_rows)
            problem = f"{where}: {row}"
            if number == LOOKED_AT:
                break
        raise InvalidInputError(f"{source.name}: no row can be read ({problem})")

    def parts(self, index: int, source: Source, finished: Container[Place]) -> Iterator[Part]:
        """The parts of the source at `index`; those at places that are `finished` without their rows.

        There is at least one, and the last one says so. Raises InvalidInputError where the source cannot be read.
        """
        read = [*map(str, self.columns.values()), *self.keep]
        names = [*read, *(one.partition(".")[0] for one in read)]
        rows: list[Given] = []
        number = count = characters = n_rows = 0
        share = 0.0
        skips = (index, 0) in finished
        for line, next_share in source.lines(self.columns, self.encoding, names):
            if count == self.rows or characters >= PART_CHARACTERS:
                yield Part(index, number, count, share, False, rows)
                number, count, characters, rows = number + 1, 0, 0, []
                skips = (index, number) in finished
            share, count, n_rows = next_share, count + 1, n_rows + 1
            given = self.row(n_rows, line)
            characters += _characters(given)
            if not skips:
                rows.append(given)
        yield Part(index, number, count, 1.0, True, rows)

    def row(self, number: int, line: Line) -> Given:
        """A line as a row of the task; a bad one has a problem."""
        given = self._row(number, line)
        try:
            msgspec.msgpack.encode(given)
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            problem = given.problem or f"not {self.encoding.upper()}, or no data of JSON ({first_line(error)[:120]})"
            return Given(number, _printable(given.where), None, {}, _printable(problem))
        return given

    def _row(self, number: int, line: Line) -> Given:
        where, found = line
        if isinstance(found, ValueError):
            return Given(number, where, None, {}, str(found))
        kept = {name: _value(name, found) for name in self.keep}
        fields = TASKS[self.task].text_fields
        given: dict[str, Any] = {}
        for name, column in self.columns.items():
            value = _value(str(column), found)
            if value is None and name not in fields:
                continue
            if not isinstance(value, str):
                missing = f"no column {column!r}; the columns are {_listed(found)}"
                problem = f"{column!r} is {shown(value)}; allowed: a text" if _has(str(column), found) else missing
                return Given(number, where, None, kept, problem)
            given[name] = value
        return Given(number, where, given[fields[0]] if len(given) == 1 else given, kept)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _characters(given: Given) -> int:
    if isinstance(given.input, str):
        return len(given.input)
    return sum(map(len, given.input.values())) if isinstance(given.input, Mapping) else 0


def _value(name: str, row: Row) -> Any:
    """The value of a column; `translation.en` is `en` within a column `translation` of objects."""
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return value.get(inner) if inner and isinstance(value, Mapping) else None


def _has(name: str, row: Row) -> bool:
    outer, _, inner = name.partition(".")
    return name in row or bool(inner and isinstance(row.get(outer), Mapping) and inner in row[outer])


def _require(name: str, row: Row, where: str) -> None:
    """Raise InvalidInputError where a row has no such column."""
    if not _has(name, row):
        near = nearest(name, map(str, row))
        raise InvalidInputError(f"{where}: no column {name!r}{near}; the columns are {_listed(row)}")


def _guessed(definition: Task, name: str, row: Row, where: str) -> str:
    if name in row:
        return name
    names = [name, *SAME_MEANING.get(name, ())]
    if "source" in definition.columns:  # what a labelled row calls the text of this task
        names += ["source", *SAME_MEANING["source"]]
    found = [one for one in row if one.strip().lower() in names]
    if len(found) == 1:
        return found[0]
    choose = f"choose one with --column {name}=NAME"
    if found:
        raise InvalidInputError(f"{where}: several columns may be {name!r}: {', '.join(found)}; {choose}")
    raise InvalidInputError(f"{where}: no column {name!r}; the columns are {_listed(row)}; {choose}")


def _listed(row: Row) -> str:
    return ", ".join(map(str, row))[:500] or "none"
