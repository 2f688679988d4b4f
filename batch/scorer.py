"""Scorer: the actor of Ray Data. A part of the input comes in as a row of bytes, and leaves as the bytes of its files.

    source, part, count, share, is_last, content  ──>  the same, n_bad, bad, began_at, ended_at

Parts cross processes as bytes that are encoded once: Ray Data moves them, and never looks inside.
"""

import os
import time
from typing import Any, Protocol

import msgspec
import pyarrow

from batch.lines import Form
from batch.local_model import LocalModel, Refused
from batch.parts import Given, Part, Place
from batch.served_model import ServedModel

GIVES_WAY = 10  # niceness beside the replicas of a cluster that serves

_rows = msgspec.msgpack.Decoder(list[Given])
_PART = pyarrow.schema(
    [
        ("source", pyarrow.int64()),
        ("number", pyarrow.int64()),
        ("count", pyarrow.int64()),
        ("share", pyarrow.float64()),
        ("is_last", pyarrow.bool_()),
        ("is_finished", pyarrow.bool_()),
        ("content", pyarrow.large_binary()),
    ]
)


class Model(Protocol):
    """Answers lists of inputs, from several threads."""

    def answers(self, inputs: list[Any]) -> list[Any]:
        """An answer for each input, in order, or Refused."""


class Finished(msgspec.Struct, frozen=True):
    """A part with the bytes of its files. `is_new`: it was not finished before. Times are `time.time()`."""

    source: int
    number: int
    count: int
    share: float
    is_last: bool
    is_new: bool
    content: bytes = b""
    bad: bytes = b""
    n_bad: int = 0
    reason: str = ""
    began_at: float = 0.0
    ended_at: float = 0.0

    @property
    def place(self) -> Place:
        return self.source, self.number


def table_of(part: Part, *, is_finished: bool) -> pyarrow.Table:
    """A part as a row of Ray Data."""
    content = msgspec.msgpack.encode(part.rows)
    columns = (part.source, part.number, part.count, part.share, part.is_last, is_finished, content)
    return pyarrow.Table.from_arrays(
        [pyarrow.array([value], one.type) for one, value in zip(_PART, columns, strict=True)], schema=_PART
    )


def finished_of(table: pyarrow.Table) -> Finished:
    """What a Scorer returned."""
    (content,) = table.column("finished").to_pylist()
    return msgspec.msgpack.decode(content, type=Finished)


class Scorer:
    """`model` opens once in each actor; calls come from several threads at once."""

    def __init__(self, model: LocalModel | ServedModel, form: Form, *, gives_way: bool) -> None:
        if gives_way:
            os.nice(GIVES_WAY)
        self._form = form
        self._model: Model = model.open()

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Score the part in a table of one row."""
        (row,) = table.to_pylist()
        content, is_finished = row.pop("content"), row.pop("is_finished")
        found = Finished(**row, is_new=not is_finished)
        if not is_finished:
            found = self._scored(found, _rows.decode(content))
        return pyarrow.table({"finished": pyarrow.array([msgspec.msgpack.encode(found)], pyarrow.large_binary())})

    def _scored(self, part: Finished, rows: list[Given]) -> Finished:
        began_at = time.time()
        readable = [row for row in rows if row.problem is None]
        answered: list[tuple[Given, Any]] = []
        bad = [(row, row.problem or "") for row in rows if row.problem is not None]
        for row, answer in zip(readable, self._model.answers([row.input for row in readable]), strict=True):
            if isinstance(answer, Refused):
                bad.append((row, answer.reason))
            else:
                answered.append((row, answer))
        bad.sort(key=lambda one: one[0].number)
        return msgspec.structs.replace(
            part,
            content=self._form.content(part.source, [row for row, _ in answered], [one for _, one in answered]),
            bad=self._form.bad(part.source, [row for row, _ in bad], [reason for _, reason in bad]),
            n_bad=len(bad),
            reason=f"{bad[-1][0].where}: {bad[-1][1]}" if bad else "",
            began_at=began_at,
            ended_at=time.time(),
        )
