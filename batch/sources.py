"""Sources: the inputs of a batch, each read from its beginning to its end, with the place of every row.

    reviews.csv, data/*.jsonl                          files; evaluation.readers reads their formats
    s3://bucket/reviews.parquet, gs://bucket/*.jsonl    of any filesystem that fsspec knows
    user/reviews@REVISION:train                        a split of a data set of the Hub

A source is opened where it is read, by a task of Ray Data: what it holds goes to that process as it is.
"""

import glob
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from batch.args import MAX_INPUTS
from evaluation.readers import (
    READERS,
    Columns,
    Line,
    Reference,
    hub_split,
    lines_of,
    suffix_of,
    table_rows,
)
from pipelines.errors import ConfigurationError, InvalidInputError, SextetError, first_line
from pipelines.misfit import nearest
from stores.address import UrlAddress, remote
from stores.filesystem import opened

PARQUET = ".parquet"
LABELLED = (".conll", ".bio", ".iob")  # words with tags: no text that a task reads
SUFFIXES = (*(one for one in READERS if one not in LABELLED), PARQUET)
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "mtime")
"""What clients of storage say of an object that changes with its content."""
RECORDS = 1024  # of a Parquet file that are Python objects at a time

Progressed = tuple[Line, float]
"""A row with its place, and the share of the source that has been read up to it."""


@dataclass(frozen=True)
class Source(ABC):
    """`name` is what the user wrote, or a file that it stands for."""

    name: str

    @abstractmethod
    def identity(self) -> str:
        """Changes where the content does. Raises InvalidInputError where there is nothing to read."""

    @abstractmethod
    def lines(self, columns: Columns, encoding: str, wanted: Sequence[str] | None = None) -> Iterator[Progressed]:
        """All rows. Where `wanted` names columns, others may be absent. Raises InvalidInputError."""


@dataclass(frozen=True)
class FileSource(Source):
    """A file of this machine, or behind a URL."""

    suffix: str

    def identity(self) -> str:
        if (url := _url(self.name)) is None:
            try:
                found = Path(self.name).stat()
            except OSError as error:
                raise InvalidInputError(f"{self.name}: {error.strerror or error}") from None
            return f"{found.st_size} bytes, {found.st_mtime_ns}"
        with _explained(self.name):
            filesystem, path = opened(url)
            info = filesystem.info(path)
        if info.get("type") == "directory":
            raise InvalidInputError(f"{self.name} is a folder; name its files, such as {self.name}/*.parquet")
        marks = [f", {info[key]}" for key in VERSIONS if key in info]
        return f"{info.get('size')} bytes{''.join(marks)}"

    def lines(self, columns: Columns, encoding: str, wanted: Sequence[str] | None = None) -> Iterator[Progressed]:
        with _explained(self.name), self._opened() as (file, size):
            if self.suffix == PARQUET:
                yield from _records(file, self.name, wanted)
                return
            for line in lines_of(file, self.name, self.suffix, columns, encoding):
                yield line, file.tell() / size if size else 1.0

    @contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], int]]:
        if (url := _url(self.name)) is None:
            with Path(self.name).open("rb") as file:
                yield file, Path(self.name).stat().st_size
            return
        filesystem, path = opened(url)
        with filesystem.open(path, "rb", cache_type="readahead") as remote_file:
            yield remote_file, int(remote_file.size or 0)


@dataclass(frozen=True)
class HubSource(Source):
    """A split of a data set. `datasets` keeps it in its cache on each node that reads it."""

    reference: Reference

    def identity(self) -> str:
        table, split = hub_split(self.reference)
        # Names of the files, which begin with the commit.
        files = sorted(getattr(table.info, "download_checksums", None) or {})
        return f"{split}, {len(table)} rows of {', '.join(files)}"[:2000]

    def lines(self, columns: Columns, encoding: str, wanted: Sequence[str] | None = None) -> Iterator[Progressed]:
        table, split = hub_split(self.reference)
        kept = None if wanted is None else [one for one in table.column_names if one in wanted]
        table = table.select_columns(kept) if kept else table
        rows = table_rows(table, f"{self.reference.name}:{split} row ")
        for number, line in enumerate(rows, 1):
            yield line, number / len(table)


def find(names: Sequence[str], form: str | None = None) -> list[Source]:
    """The sources that `names` stand for, in their order; files of a pattern by name. `form` replaces their suffix.

    Raises ConfigurationError or InvalidInputError.
    """
    sources: list[Source] = []
    for name in names:
        sources += _sources(name, form)
        if len(sources) > MAX_INPUTS:
            raise ConfigurationError(f"--input {name}: more than {MAX_INPUTS:,} files; allowed: at most that many")
    (most, count), *_ = Counter(sources).most_common(1)
    if count > 1:
        raise ConfigurationError(f"--input names {most.name} twice; allowed: each input once")
    return sources


def _sources(name: str, form: str | None) -> list[Source]:
    url = _url(name)
    if url is None and not Path(name).exists():
        if glob.has_magic(name):
            return [_file(one, form) for one in _found(name, sorted(glob.glob(name, recursive=True)))]
        if form is None and suffix_of(Path(name)) not in SUFFIXES and (reference := Reference.parse(name)):
            return [HubSource(name, reference)]
        raise InvalidInputError(f"{name}: no such file")
    if url is not None and glob.has_magic(name):
        with _explained(name):
            filesystem, path = opened(url)
            return [
                _file(filesystem.unstrip_protocol(one), form) for one in _found(name, sorted(filesystem.glob(path)))
            ]
    return [_file(name, form)]


def _found(pattern: str, names: list[str]) -> list[str]:
    if not names:
        raise InvalidInputError(f"{pattern}: no file has such a name")
    return names


def _file(name: str, form: str | None) -> FileSource:
    suffix = f".{form.removeprefix('.')}" if form else suffix_of(Path(name))
    if suffix not in SUFFIXES:
        raise InvalidInputError(
            f"{name}: cannot read {suffix or 'a file without a suffix'}{nearest(suffix, SUFFIXES)}; allowed: "
            f"{', '.join(SUFFIXES)}, all but Parquet also .gz; say which it is with --format"
        )
    return FileSource(name, suffix)


def _url(name: str) -> UrlAddress | None:
    address = remote(name)
    return address if isinstance(address, UrlAddress) else None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Word what a filesystem raises as an InvalidInputError: each client has its own errors."""
    try:
        yield
    except SextetError:
        raise
    except FileNotFoundError:
        raise InvalidInputError(f"{name}: no such file") from None
    except PermissionError as error:
        raise InvalidInputError(f"{name}: no access ({first_line(error)[:120]}); check the credentials") from None
    except Exception as error:  # of this system, of a client, of pyarrow
        raise InvalidInputError(f"{name}: cannot be read ({type(error).__name__}: {first_line(error)[:120]})") from None


def _records(file: IO[bytes], name: str, wanted: Sequence[str] | None) -> Iterator[Progressed]:
    """The records of a Parquet file, a few at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        content = parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise InvalidInputError(f"{name}: not Parquet ({first_line(error)[:120]})") from None
    names = content.schema_arrow.names
    kept = None if wanted is None else [one for one in names if one in wanted]
    total, number = content.metadata.num_rows, 0
    for records in content.iter_batches(RECORDS, columns=kept):
        rows: list[dict[str, Any]] = records.to_pylist() if records.num_columns else [{}] * records.num_rows
        for row in rows:
            number += 1
            yield (f"{name}:row {number}", row), number / total
