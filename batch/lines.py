"""Lines: the answers of a part in the format of the output.

    .jsonl, .ndjson   {"row": 17, "file": "a.csv", <kept columns>, "answer": <as the Hugging Face task API gives it>}
    .parquet          the same columns; an answer has the type that the task declares, or is JSON in a text

`file` is there where there are several inputs. Of bad rows there are JSON lines with their reason, in any format.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from batch.parts import Given
from pipelines.misfit import bare
from pipelines.schema import encode
from pipelines.tasks import TASKS

if TYPE_CHECKING:
    import pyarrow


class Form(msgspec.Struct, frozen=True):
    """How lines are written. `files` has the name of each source where there are several."""

    task: str
    suffix: str
    keep: tuple[str, ...]
    files: tuple[str, ...] = ()

    def content(self, source: int, rows: Sequence[Given], answers: Sequence[Any]) -> bytes:
        """The file of a part's answers, which belong to `rows`."""
        if self.suffix == ".parquet":
            return self._parquet(source, rows, answers)
        lines = (
            encode({**self._head(source, row), **row.kept, "answer": answer})
            for row, answer in zip(rows, answers, strict=True)
        )
        return b"".join(line + b"\n" for line in lines)

    def bad(self, source: int, rows: Sequence[Given], reasons: Sequence[str]) -> bytes:
        """JSON lines of bad rows: their place, why, and what was read of them."""
        return b"".join(
            encode({**self._head(source, row), "where": row.where, "reason": reason, **row.kept, "input": row.input})
            + b"\n"
            for row, reason in zip(rows, reasons, strict=True)
        )

    def _head(self, source: int, row: Given) -> dict[str, Any]:
        return {"row": row.number} | ({"file": self.files[source]} if self.files else {})

    def _parquet(self, source: int, rows: Sequence[Given], answers: Sequence[Any]) -> bytes:
        import pyarrow
        from pyarrow import parquet

        columns: dict[str, pyarrow.Array] = {"row": pyarrow.array([row.number for row in rows], pyarrow.int64())}
        if self.files:
            columns["file"] = pyarrow.array([self.files[source]] * len(rows), pyarrow.string())
        for name in self.keep:
            columns[name] = pyarrow.array([_as_text(row.kept.get(name)) for row in rows], pyarrow.string())
        info = inspect.type_info(TASKS[self.task].answer_type)
        columns["answer"] = pyarrow.array([_shaped(one, info) for one in answers], arrow_type(info))
        file = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), file)
        return file.getvalue()


def join_parquet(file: IO[bytes], parts: Iterable[bytes]) -> None:
    """Write one Parquet file of several, a part at a time."""
    from pyarrow import parquet

    writer = None
    for part in parts:
        table = parquet.read_table(io.BytesIO(part))
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else encode(value).decode()


def arrow_type(info: Any) -> "pyarrow.DataType":
    """The Arrow type of what msgspec describes; text, for JSON, where it has none."""
    import pyarrow

    info = _kind(info)
    if isinstance(info, inspect.TypedDictType):
        return pyarrow.struct([(one.encode_name, arrow_type(one.type)) for one in info.fields])
    if isinstance(info, inspect.ListType):
        return pyarrow.list_(arrow_type(info.item_type))
    scalars = {
        inspect.FloatType: pyarrow.float64(),
        inspect.IntType: pyarrow.int64(),
        inspect.BoolType: pyarrow.bool_(),
    }
    return scalars.get(type(info), pyarrow.string())


def _shaped(value: Any, info: Any) -> Any:
    """A value as `arrow_type` expects it."""
    info = _kind(info)
    if value is None:
        return None
    if isinstance(info, inspect.TypedDictType) and isinstance(value, Mapping):
        return {one.encode_name: _shaped(value.get(one.encode_name), one.type) for one in info.fields}
    if isinstance(info, inspect.ListType):
        return [_shaped(one, info.item_type) for one in (value if isinstance(value, list) else [value])]
    if isinstance(info, inspect.FloatType | inspect.IntType | inspect.BoolType):
        return value
    return _as_text(value)


def _kind(info: Any) -> Any:
    """The type without bounds; of one thing or a list of it, the list."""
    info = bare(info)
    if isinstance(info, inspect.UnionType):
        some = [bare(one) for one in info.types if not isinstance(bare(one), inspect.NoneType)]
        lists = [one for one in some if isinstance(one, inspect.ListType)]
        if len(some) == 1:
            return some[0]
        if len(some) == 2 and len(lists) == 1 and bare(lists[0].item_type) in some:
            return lists[0]
    return info
