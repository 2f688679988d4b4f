"""Training data: files in, rows out, and a bad row named by file and line.

| task                 | a row                                                                    |
|----------------------|--------------------------------------------------------------------------|
| text-classification  | `text`, `label` (a name), and `text_pair` where the file has it          |
| token-classification | `text`, `entities`: a list of {`start`, `end`, `label`} in characters    |
| question-answering   | `question`, `context`, `answers`: {`text`: [...], `answer_start`: [...]} |
| translation, summarization | `source`, `target`                                                 |
| text-generation      | `text`                                                                   |

Files are CSV or TSV (with a header, or with column numbers), JSON lines, CoNLL columns (the word first, the BIO tag
last) and plain text (a line a row), each also as .gz. `columns` says where a field is when its name differs.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from datasets import Dataset

from pipelines.errors import InvalidInputError

Row = dict[str, Any]
Columns = Mapping[str, str | int]
Line = tuple[int, Row]
"""A row as its file has it, after the number (from 1) of its line."""

FIELDS = {
    "text-classification": ("text", "label"),
    "token-classification": ("text", "entities"),
    "question-answering": ("question", "context", "answers"),
    "translation": ("source", "target"),
    "summarization": ("source", "target"),
    "text-generation": ("text",),
}
OPTIONAL_FIELDS = {"text-classification": ("text_pair",)}


def read(files: Sequence[str | Path], task: str, columns: Columns | None = None) -> Dataset:
    """The rows of all files, in order; raises InvalidInputError as `FILE:LINE: what is wrong`."""
    rows = [row for file in files for row in _rows(Path(file), task, columns or {})]
    if not rows:
        raise InvalidInputError(f"{', '.join(map(str, files)) or 'no file'}: no rows")
    return Dataset.from_list(rows)


def _rows(path: Path, task: str, columns: Columns) -> Iterator[Row]:
    if not path.is_file():
        raise InvalidInputError(f"{path}: no such file")
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise InvalidInputError(f"{path}: cannot read {suffix or 'a file without a suffix'}; known: {known}, also .gz")
    number = 1
    try:
        with _open(path, "rt", encoding="utf-8", newline="") as file:
            for raw_number, raw in READERS[suffix](file, columns):
                number = raw_number
                yield _checked(_renamed(raw, columns), task)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}:{_undecodable_line(path)}: not UTF-8 ({error.reason})") from None
    except _LineError as error:
        raise InvalidInputError(f"{path}:{error.number}: {error}") from None
    except (ValueError, OSError) as error:
        raise InvalidInputError(f"{path}:{number}: {error}") from None


class _LineError(ValueError):
    """A line that a reader cannot make a row of."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what)
        self.number = number


def _open(path: Path, mode: str, **how: Any) -> IO[Any]:
    return cast(IO[Any], (gzip.open if path.suffix == ".gz" else open)(path, mode, **how))


def _undecodable_line(path: Path) -> int:
    with _open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{path} is UTF-8 after all")


def _renamed(raw: Row, columns: Columns) -> Row:
    return raw | {field: raw[str(column)] for field, column in columns.items() if str(column) in raw}


def _checked(raw: Row, task: str) -> Row:
    """The fields of the task, or ValueError."""
    if task == "token-classification" and "entities" not in raw and "tokens" in raw:
        raw = from_tags(raw["tokens"], raw.get("tags", []))
    missing = [field for field in FIELDS[task] if raw.get(field) is None]
    if missing:
        raise ValueError(f"no {missing[0]!r}; the columns are {', '.join(raw) or 'none'}")
    row = {field: raw[field] for field in (*FIELDS[task], *OPTIONAL_FIELDS.get(task, ())) if raw.get(field) is not None}
    if task == "text-classification":
        row["label"] = str(row["label"])
    for field in row.keys() - {"entities", "answers", "label"}:
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{field!r} is {row[field]!r}, not a text")
    if "entities" in row:
        row["entities"] = [_entity(entity, row["text"]) for entity in row["entities"]]
    if "answers" in row:
        row["answers"] = _answers(row["answers"], row["context"])
    return row


def _entity(entity: Any, text: str) -> Row:
    try:
        start, end, label = entity["start"], entity["end"], entity["label"]
    except (TypeError, KeyError):
        raise ValueError(f"an entity is {entity!r}, not {{start, end, label}}") from None
    if not 0 <= start < end <= len(text):
        raise ValueError(f"entity {label} is at {start}..{end} of a text of {len(text)} characters")
    return {"start": start, "end": end, "label": label}


def _answers(answers: Any, context: str) -> Row:
    try:
        pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
    except (TypeError, KeyError, ValueError):
        raise ValueError("'answers' is not {text: [...], answer_start: [...]}, equally long") from None
    for text, start in pairs:
        if context[start : start + len(text)] != text:
            raise ValueError(f"the answer {text!r} is not at character {start} of the context")
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def from_tags(tokens: Sequence[str], tags: Sequence[str]) -> Row:
    """Words and their BIO tags as `text` and `entities`; the words are joined by single spaces."""
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens, but {len(tags)} tags")
    entities: list[Row] = []
    position, previous = 0, "O"
    for token, tag in zip(tokens, tags, strict=True):
        prefix, _, label = tag.partition("-")
        if tag != "O" and (prefix not in "BI" or not label):
            raise ValueError(f"the tag {tag!r} is not O, B-NAME or I-NAME")
        if prefix == "I" and previous in (f"B-{label}", f"I-{label}"):
            entities[-1]["end"] = position + len(token)
        elif tag != "O":
            entities.append({"start": position, "end": position + len(token), "label": label})
        position, previous = position + len(token) + 1, tag
    return {"text": " ".join(tokens), "entities": entities}


def _delimited(delimiter: str) -> Callable[[IO[str], Columns], Iterator[Line]]:
    def read_delimited(file: IO[str], columns: Columns) -> Iterator[Line]:
        # Quotes mean something in CSV only: half of the tab-separated corpora have lone ones in their texts.
        reader = partial(csv.reader, file, delimiter=delimiter, strict=True)
        records = _records(reader() if delimiter == "," else reader(quoting=csv.QUOTE_NONE))
        numbered = bool(columns) and all(isinstance(column, int) for column in columns.values())
        header = None if numbered else next(records, (0, []))[1]
        for number, record in records:
            if header is not None and len(record) != len(header):
                raise _LineError(f"{len(record)} columns where the header has {len(header)}", number)
            names = header or [str(index) for index in range(len(record))]
            yield number, dict(zip(names, record, strict=True))

    return read_delimited


def _records(records: Any) -> Iterator[tuple[int, list[str]]]:
    """A csv.reader's records but the empty ones, each after the number of the line that it ends on."""
    while True:
        try:
            record = next(records, None)
        except csv.Error as error:
            raise _LineError(str(error), records.line_num) from None
        if record is None:
            return
        if record:
            yield records.line_num, record


def _json_lines(file: IO[str], columns: Columns) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _LineError(f"not JSON ({error})", number) from None
            if not isinstance(row, dict):
                raise _LineError("not a JSON object", number)
            yield number, row


def _conll(file: IO[str], columns: Columns) -> Iterator[Line]:
    tokens: list[str] = []
    tags: list[str] = []
    number = first = 0
    for number, line in enumerate(file, 1):
        cells = line.split()
        if not cells or cells[0] == "-DOCSTART-":
            if tokens:
                yield first, {"tokens": tokens, "tags": tags}
            tokens, tags = [], []
            continue
        if len(cells) < 2:
            raise _LineError(f"{line.strip()!r} has no tag", number)
        first = first if tokens else number
        tokens.append(cells[0])
        tags.append(cells[-1])
    if tokens:
        yield first, {"tokens": tokens, "tags": tags}


def _plain(file: IO[str], columns: Columns) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


READERS: Mapping[str, Callable[[IO[str], Columns], Iterator[Line]]] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _json_lines,
    ".conll": _conll,
    ".txt": _plain,
}
