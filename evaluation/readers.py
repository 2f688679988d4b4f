"""Readers: the raw rows of a file, or of a data set of the Hugging Face Hub, each with its place.

| suffix (also with .gz)  | a row is                                                                               |
|-------------------------|----------------------------------------------------------------------------------------|
| .csv .tsv               | a record under a header, or without one where columns are given as numbers             |
| .jsonl .ndjson          | an object per line                                                                     |
| .json                   | SQuAD (`data`, `paragraphs`, `qas`), a list of objects, or one object per line         |
| .conll .bio .iob        | a sentence: a word first and its tag last on each line, a blank line between sentences |
| .txt                    | a line; tab-separated where columns are given as numbers                               |
| .parquet                | a record (not as .gz: it is compressed inside)                                         |
| `a.en,a.fr`             | line n of the one as `source`, line n of the other as `target`                         |

A row that cannot be read is a ValueError in the place of the row; reading goes on behind it. Bytes that are not in the
file's encoding stay in the row as lone surrogates, which evaluation.rows reports.

The `datasets` library reads Parquet and the Hub. Its readers for CSV, JSON and text are not used: they infer types
("007" becomes 7, a number in a column of texts is an error), stop at the first bad row and do not tell its line. Here a
bad row is named by file and line, and up to `max_bad_rows` of them are left out.
"""

import csv
import gzip
import io
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, Self, cast

from pipelines.errors import InvalidInputError, first_line

Row = dict[str, Any]
Columns = Mapping[str, str | int]
Line = tuple[str, Row | ValueError]
"""The place of a row (`FILE:LINE`, or `FILE:` and a path within), and the row."""

UNREADABLE = (OSError, EOFError, zlib.error, UnicodeError)
"""What a damaged .gz raises, or bytes that no surrogate can stand for: an odd number of them in UTF-16."""
_FORM = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?::(?:(?P<config>[\w.-]+)/)?(?P<split>\w+))?")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
csv.field_size_limit(2**31 - 1)  # the csv module's limit, 131072 characters, is shorter than many documents


def lines(name: str, columns: Columns, encoding: str = "utf-8", form: str | None = None) -> Iterator[Line]:
    """The rows of a file, or of a pair of parallel files; `form` is a suffix that replaces the file's own.

    Raises InvalidInputError where there is no such file, where it is no text, or not of a known format.
    """
    if "," in name and not Path(name).exists():
        yield from _parallel([Path(part.strip()) for part in name.split(",")], encoding)
        return
    path = Path(name)
    suffix = f".{form.removeprefix('.')}" if form else suffix_of(path)
    if not path.is_file():
        raise InvalidInputError(f"{path}: no such file")
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    if suffix not in READERS:
        raise InvalidInputError(
            f"{path}: cannot read {suffix or 'a file without a suffix'}; known: {', '.join(KNOWN)}, also .gz; "
            "say which it is with --format, and name two parallel files in one word: a.en,a.fr"
        )
    with _open(path) as file:
        yield from lines_of(file, str(path), suffix, columns, encoding)


def lines_of(file: IO[bytes], name: str, suffix: str, columns: Columns, encoding: str = "utf-8") -> Iterator[Line]:
    """The rows of an open file of a format of READERS; one whose `name` ends in .gz is compressed."""
    number: str | int = 1
    with as_text(file, name, encoding) as text:
        try:
            for number, row in READERS[suffix](text, columns):
                yield f"{name}:{number}", row
        except UNREADABLE as error:
            raise InvalidInputError(f"{name}:{number}: cannot be read ({error})") from None


def suffix_of(path: Path) -> str:
    """The suffix that names the format: `.csv` of a.csv and of a.csv.gz."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


@contextmanager
def as_text(file: IO[bytes], name: str, encoding: str) -> Iterator[IO[str]]:
    """A file as text; `name` ends in .gz where it is compressed. Bytes that are not in `encoding` become surrogates."""
    binary = cast(IO[bytes], gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file)
    try:
        beginning = binary.read(2)
        binary.seek(0)
    except UNREADABLE as error:
        raise InvalidInputError(f"{name}: cannot be read ({error})") from None
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    if utf8 and beginning in _UTF16:
        raise InvalidInputError(f"{name}:1: the file is UTF-16, not UTF-8; set encoding to utf-16")
    codec = "utf-8-sig" if utf8 else encoding
    try:
        text = io.TextIOWrapper(binary, encoding=codec, errors="surrogateescape", newline="")
    except LookupError:
        raise InvalidInputError(f"{name}: encoding is {encoding!r}, which Python does not know") from None
    with text:
        yield text


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error})") from None


Numbered = Iterator[tuple[str | int, Row | ValueError]]


def _delimited(delimiter: str) -> Callable[[IO[str], Columns], Numbered]:
    def read_delimited(file: IO[str], columns: Columns) -> Numbered:
        # Quotes mean something in CSV only: half of the tab-separated corpora have lone ones in their texts.
        reader = partial(csv.reader, file, delimiter=delimiter, strict=True)
        records = _records(reader() if delimiter == "," else reader(quoting=csv.QUOTE_NONE))
        header: list[str] | None = None
        broken: ValueError | None = None
        if not by_number(columns):
            number, first = next(records, (1, []))
            header, broken = ([], first) if isinstance(first, ValueError) else (first, _named_twice(first))
            if broken:
                yield number, ValueError(f"the header: {broken}")
        for number, record in records:
            if isinstance(record, ValueError):
                yield number, record
            elif broken:
                yield number, ValueError("below a header that is broken")
            elif header is not None and len(record) != len(header):
                yield number, ValueError(f"{len(record)} columns where the header has {len(header)}")
            else:
                names = header or [str(index) for index in range(len(record))]
                yield number, dict(zip(names, record, strict=True))

    return read_delimited


def _named_twice(header: list[str]) -> ValueError | None:
    """The error for a name that two columns have; columns without a name, which spreadsheets append, do not count."""
    twice = next((name for name in header if name.strip() and header.count(name) > 1), None)
    return None if twice is None else ValueError(f"two columns are called {twice!r}; rename one of them")


def by_number(columns: Columns) -> bool:
    """Whether columns are counted, so that the file has no header."""
    return bool(columns) and all(isinstance(column, int) for column in columns.values())


def _records(records: Any) -> Iterator[tuple[int, list[str] | ValueError]]:
    """A csv.reader's records but the empty ones, each after the number of the line that it ends on."""
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield records.line_num, ValueError(str(error))
            continue
        if record:
            yield records.line_num, record


def _json_lines(file: IO[str], columns: Columns) -> Numbered:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"not JSON ({error})")
                continue
            yield number, row if isinstance(row, dict) else ValueError("not a JSON object")


def _json_document(file: IO[str], columns: Columns) -> Numbered:
    text = file.read()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().split("\n", 1)[0]
        if first.startswith("{") and first.rstrip().endswith("}"):  # JSON lines under another name
            yield from _json_lines(io.StringIO(text, newline=""), columns)
        elif text.strip():
            yield getattr(error, "lineno", 1), ValueError(f"not JSON ({error})")
        return
    within = "data" if isinstance(document, dict) and isinstance(document.get("data"), list) else ""
    rows = document[within] if within else document if isinstance(document, list) else [document]
    for index, row in enumerate(rows):
        place = f"{within}[{index}]"
        if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):
            yield from _squad(row["paragraphs"], place)
        else:
            yield place, row if isinstance(row, dict) else ValueError("not a JSON object")


def _squad(paragraphs: list[Any], place: str) -> Numbered:
    """The questions of an article; one without an answer in its context has an empty list of them."""
    for index, paragraph in enumerate(paragraphs):
        for number, asked in enumerate(paragraph.get("qas", []) if isinstance(paragraph, dict) else []):
            where = f"{place}.paragraphs[{index}].qas[{number}]"
            try:
                answers = [] if asked.get("is_impossible") else asked["answers"]
                found = {name: [answer[name] for answer in answers] for name in ("text", "answer_start")}
                yield where, {"question": asked["question"], "context": paragraph["context"], "answers": found}
            except (KeyError, TypeError, AttributeError) as error:
                yield where, ValueError(f"not a question of SQuAD (no {error})")


def _conll(file: IO[str], columns: Columns) -> Numbered:
    word, tag = (columns.get(name) for name in ("tokens", "tags"))
    tokens: list[str] = []
    tags: list[str] = []
    problem: ValueError | None = None
    first = broken = 0

    def sentence() -> Numbered:
        if tokens:
            yield (broken, problem) if problem else (first, {"tokens": tokens, "tags": tags})

    for number, line in enumerate(file, 1):
        line = line.rstrip("\r\n")
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == "-DOCSTART-":
            yield from sentence()
            tokens, tags, problem = [], [], None
            continue
        if not tokens and line.startswith("#") and not is_tag(cells[-1]):
            continue  # a comment above a sentence
        first = first if tokens else number
        if len(cells) < 2 or max(int(word or 0), int(tag or 0)) >= len(cells):
            broken, problem = (broken, problem) if problem else (number, ValueError(f"{line.strip()!r} has no tag"))
        tokens.append(cells[min(int(word or 0), len(cells) - 1)])
        tags.append(cells[-1 if tag is None else min(int(tag), len(cells) - 1)].strip())
    yield from sentence()


def is_tag(text: str) -> bool:
    """Whether it looks like O, B-PER and the like."""
    return text == "O" or (len(text) > 2 and text[0] in "BIESLU" and text[1] == "-")


def _plain(file: IO[str], columns: Columns) -> Numbered:
    if by_number(columns):
        yield from _delimited("\t")(file, columns)
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _parquet(path: Path) -> Iterator[Line]:
    import datasets

    try:
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
    except Exception as error:  # pyarrow's own, wrapped by datasets in several ways
        cause = error.__cause__ or error
        raise InvalidInputError(f"{path}: not Parquet ({first_line(cause)})") from None
    yield from table_rows(table, f"{path}:row ")


def table_rows(table: Any, where: str) -> Iterator[Line]:
    """The rows of a `datasets.Dataset`, numbered from 1, with the names of labels in the place of their ids."""
    names = {}
    for column, feature in table.features.items():
        inner = getattr(feature, "feature", feature)
        if hasattr(inner, "int2str"):
            names[column] = inner.int2str
    for number, row in enumerate(table, 1):
        for column, name_of in names.items():
            value = row[column]
            if isinstance(value, list):
                row[column] = [name_of(one) for one in value]
            elif value is not None:
                row[column] = name_of(value) if value >= 0 else None  # -1: the label is kept from the public
        yield f"{where}{number}", row


def _parallel(paths: list[Path], encoding: str) -> Iterator[Line]:
    missing = next((path for path in paths if not path.is_file()), None)
    if len(paths) != 2 or missing is not None:
        reason = f"{missing}: no such file" if missing else f"{len(paths)} files"
        raise InvalidInputError(f"{reason}; parallel text is two files of as many lines: SOURCE,TARGET")
    with (
        _open(paths[0]) as source_file,
        _open(paths[1]) as target_file,
        as_text(source_file, str(paths[0]), encoding) as sources,
        as_text(target_file, str(paths[1]), encoding) as targets,
    ):
        both = zip_longest(_sound(sources, paths[0]), _sound(targets, paths[1]))
        for number, (source, target) in enumerate(both, 1):
            if source is None or target is None:
                short, long = paths if source is None else paths[::-1]
                raise InvalidInputError(f"{short} ends before line {number}, where {long} goes on; lines must match")
            if source.strip() or target.strip():
                yield f"{paths[0]}:{number}", {"source": source.rstrip("\r\n"), "target": target.rstrip("\r\n")}


def _sound(file: IO[str], path: Path) -> Iterator[str]:
    try:
        yield from file
    except UNREADABLE as error:
        raise InvalidInputError(f"{path}: cannot be read ({error})") from None


READERS: Mapping[str, Callable[[IO[str], Columns], Numbered]] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_document,
    ".conll": _conll,
    ".bio": _conll,
    ".iob": _conll,
    ".txt": _plain,
}
KNOWN = (*READERS, ".parquet")


# --- the Hub ---


@dataclass(frozen=True)
class Reference:
    """`OWNER/NAME[@REVISION][:[CONFIG/]SPLIT]`, such as `klue/klue:ner/validation`."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where it has another form."""
        match = _FORM.fullmatch(text)
        return cls(**match.groupdict()) if match else None


def hub_lines(reference: Reference) -> Iterator[Line]:
    """The rows of a split; raises InvalidInputError where the Hub, the data set or the split cannot be had."""
    table, split = hub_split(reference)
    yield from table_rows(table, f"{reference.name}:{split} row ")


def hub_split(reference: Reference) -> tuple[Any, str]:
    """A split as a `datasets.Dataset`, and its name; raises InvalidInputError."""
    import datasets

    name = reference.name
    try:
        found = datasets.load_dataset(name, reference.config, revision=reference.revision)
    except Exception as error:  # from a dozen libraries, as the cause may be
        raise InvalidInputError(
            f"{name}: no such file, and as a data set of the Hub it cannot be had ({first_line(error)[:200]}); check "
            "the id, the network, HF_TOKEN"
        ) from None
    splits = ", ".join(found)
    split = reference.split or (next(iter(found)) if len(found) == 1 else None)
    if split is None:
        first = next(iter(found))
        raise InvalidInputError(f"{name} has several splits: {splits}; write which one: {name}:{first}")
    if split not in found:
        raise InvalidInputError(f"{name} has no split {split!r}; allowed: {splits}")
    return found[split], split
