"""Rows: labelled text from files or a data set of the Hub, checked; a bad row is named by file and line.

| task                 | a row                                                                               |
|----------------------|-------------------------------------------------------------------------------------|
| text-classification  | `text`, `label` (a name; a list of names for many; a number for regression), and    |
|                      | `text_pair` where the file has it                                                   |
| token-classification | `text`, `entities`: a list of {`start`, `end`, `label`} in characters               |
| question-answering   | `question`, `context`, `answers`: {`text`: [...], `answer_start`: [...]}, both empty |
|                      | where the context has no answer                                                     |
| translation, summarization | `source`, `target`                                                            |
| text-generation      | `text`                                                                              |

Each row also has `where`: `FILE:LINE`. evaluation.readers lists the formats. A field is read from the column of its
name, from the column that `columns` says, or from the only column whose name means the same.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset

from checkpoints.frameworks import Progress
from checkpoints.heads import MULTI_LABEL, REGRESSION
from evaluation.columns import SAME_MEANING
from evaluation.readers import KNOWN, Columns, Line, Reference, Row, hub_lines, lines, suffix_of
from pipelines.errors import InvalidInputError
from pipelines.tasks import TASKS


@dataclass(frozen=True)
class DataArgs:
    """How files become rows of a task. `labels` renames labels; up to `max_bad_rows` bad rows are left out."""

    task: str
    columns: Columns = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    problem_type: str | None = None
    encoding: str = "utf-8"
    format: str | None = None
    max_bad_rows: int = 0


class BadRows:
    """Counts the rows that are left out: each is reported, and one more than `limit` ends the reading."""

    def __init__(self, limit: int, say: Progress) -> None:
        self.count = 0
        self._limit = limit
        self.say = say

    def add(self, where: str, what: str) -> None:
        """Raises InvalidInputError once there are more than the limit."""
        self.count += 1
        if self.count <= self._limit:
            self.say(f"{where}: {what}; left out (bad row {self.count} of at most {self._limit})")
            return
        more = f"; bad row {self.count}, allowed by max_bad_rows: {self._limit}" if self._limit else ""
        raise InvalidInputError(f"{where}: {what}{more}")


def read(files: Sequence[str | Path], args: DataArgs, bad: BadRows | None = None) -> Dataset:
    """The rows of all files, in order; raises InvalidInputError as `FILE:LINE: what is wrong`."""
    bad = bad or BadRows(args.max_bad_rows, print)
    rows = [row for file in files for row in _rows(str(file), args, bad)]
    if not rows:
        left_out = f" but {bad.count} bad ones" if bad.count else ""
        raise InvalidInputError(f"{', '.join(map(str, files)) or 'no file'}: no rows{left_out}")
    # Dataset.from_list keeps or drops a column by the first row alone.
    for name in TASKS[args.task].optional_columns:
        lacking = [row["where"] for row in rows if name not in row]
        if 0 < len(lacking) < len(rows):
            raise InvalidInputError(f"{lacking[0]}: no {name!r}, which other rows have; all need it, or none")
    return Dataset.from_list(rows)


def _rows(name: str, args: DataArgs, bad: BadRows) -> Iterator[Row]:
    guess: dict[str, str] = {}
    said: set[str] = set()
    for where, raw in _lines(name, args):
        try:
            if isinstance(raw, ValueError):
                raise raw
            row = _checked(_renamed(raw, args, guess), args)
        except ValueError as error:
            bad.add(where, str(error))
            continue
        for wanted in [one for one, column in guess.items() if column and one not in said]:
            said.add(wanted)
            bad.say(f"{name}: column {guess[wanted]!r} is taken for {wanted!r}; --columns {wanted}=NAME takes another")
        yield row | {"where": where}


def _lines(name: str, args: DataArgs) -> Iterator[Line]:
    on_hub = not Path(name).exists() and suffix_of(Path(name)) not in KNOWN and "," not in name
    if on_hub and args.format is None and (reference := Reference.parse(name)):
        return hub_lines(reference)
    return lines(name, args.columns, args.encoding, args.format)


def _renamed(raw: Row, args: DataArgs, guess: dict[str, str]) -> Row:
    """The row with its fields under their own names; `guess` keeps the columns that were chosen for the file."""
    if isinstance(
        by_language := raw.get(args.task), dict
    ):  # data sets of the Hub: {"translation": {"en": ..., "fr": ...}}
        raw = raw | by_language
    if args.columns:
        raw = raw | {name: raw[str(column)] for name, column in args.columns.items() if str(column) in raw}
        absent = next((str(column) for column in args.columns.values() if str(column) not in raw), None)
        if absent is not None and not isinstance(raw.get("tokens"), list):
            raise ValueError(f"no column {absent!r}; the columns are {', '.join(raw)}")
    wanted = [*TASKS[args.task].columns, *TASKS[args.task].optional_columns]
    if "entities" in wanted and "entities" not in raw:
        wanted = ["tokens", "tags"]
    for name in wanted:
        if name not in raw:
            if guess.get(name) not in raw:
                guess[name] = _same_meaning(name, raw)
            if guess[name]:
                raw = raw | {name: raw[guess[name]]}
    return raw


def _same_meaning(name: str, raw: Row) -> str:
    found = [column for column in raw if column.strip().lower() in (name, *SAME_MEANING.get(name, ()))]
    if len(found) > 1:
        raise ValueError(f"several columns may be {name!r}: {', '.join(found)}; choose one with --columns {name}=NAME")
    return found[0] if found else ""


def _checked(raw: Row, args: DataArgs) -> Row:
    """The fields of the task, or ValueError."""
    fields, optional = TASKS[args.task].columns, TASKS[args.task].optional_columns
    if "entities" in fields and "entities" not in raw and "tokens" in raw:
        for name in ("tokens", "tags"):
            if not isinstance(raw.get(name), list) or not all(isinstance(one, str) for one in raw[name]):
                raise ValueError(f"{name!r} is {_shown(raw.get(name))}, not a list of texts")
        raw = from_tags(raw["tokens"], raw["tags"])
    missing = [name for name in fields if raw.get(name) is None]
    if missing:
        columns = ", ".join(raw) or "none"
        raise ValueError(f"no {missing[0]!r}; the columns are {columns}; choose one with --columns {missing[0]}=NAME")
    row = {name: raw[name] for name in (*fields, *optional) if raw.get(name) is not None}
    if "label" in row:
        row["label"] = _label(row["label"], args)
    for name in row.keys() - {"entities", "answers", "label"}:
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"{name!r} is {_shown(row[name])}, not a text")
        if undecoded := re.search("[\ud800-\udfff]", row[name]):
            raise ValueError(_undecoded(undecoded[0], args.encoding))
    if "entities" in row:
        if not isinstance(row["entities"], list):
            raise ValueError(f"'entities' is {_shown(row['entities'])}, not a list of {{start, end, label}}")
        row["entities"] = [_entity(entity, row["text"], args) for entity in row["entities"]]
        _check_apart(row["entities"])
    if "answers" in row:
        row["answers"] = _answers(row["answers"], row["context"])
    return row


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _undecoded(character: str, encoding: str) -> str:
    byte = ord(character) - 0xDC00
    if not 0x80 <= byte <= 0xFF:
        return f"half of a character (a lone surrogate {character!a})"
    return f"not {encoding.upper()} (byte 0x{byte:02x}); where the whole file is so, set encoding, such as cp949"


def _label(value: Any, args: DataArgs) -> str | float | list[str]:
    if args.problem_type == REGRESSION:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"'label' is {_shown(value)}, not a number")
        return number
    if args.problem_type == MULTI_LABEL:
        several = value if isinstance(value, list) else re.split(r"[|,;]", str(value))
        names = [args.labels.get(name, name) for name in (_name(one, args) for one in several)]
        return [name for name in dict.fromkeys(names) if name]
    if isinstance(value, (list, dict)):
        raise ValueError(f"'label' is {_shown(value)}; a list needs problem_type: multi_label_classification")
    name = _name(value, args)
    if not name:
        raise ValueError("'label' is empty")
    return args.labels.get(name, name)


def _name(value: Any, args: DataArgs) -> str:
    name = str(value).strip()
    if undecoded := re.search("[\ud800-\udfff]", name):
        raise ValueError(_undecoded(undecoded[0], args.encoding))
    return name


def _entity(entity: Any, text: str, args: DataArgs) -> Row:
    try:
        start, end, label = int(entity["start"]), int(entity["end"]), entity["label"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"an entity is {_shown(entity)}, not {{start, end, label}}") from None
    label = _name(label, args)
    if not 0 <= start < end <= len(text):
        raise ValueError(f"entity {label} is at {start}..{end} of a text of {len(text)} characters")
    return {"start": start, "end": end, "label": args.labels.get(label, label)}


def _check_apart(entities: list[Row]) -> None:
    """Raise ValueError for entities that overlap: each token has one tag. Equal entities are harmless."""
    for one, two in pairwise(sorted(entities, key=lambda entity: (entity["start"], entity["end"]))):
        if two["start"] < one["end"] and one != two:
            first, second = (f"{each['label']} at {each['start']}..{each['end']}" for each in (one, two))
            raise ValueError(f"entity {second} overlaps {first}; a token has one tag")


def _answers(answers: Any, context: str) -> Row:
    if isinstance(answers, list):  # of objects, as SQuAD has them
        objects = [one if isinstance(one, dict) else {} for one in answers]
        answers = {name: [one.get(name) for one in objects] for name in ("text", "answer_start")}
    try:
        pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
        wrong = next((pair for pair in pairs if pair[1] < 0 or not context.startswith(pair[0], pair[1])), None)
    except (TypeError, KeyError, ValueError):
        raise ValueError("'answers' is not {text: [...], answer_start: [...]}, equally long") from None
    if any(not text.strip() for text, _ in pairs):
        raise ValueError("an answer is empty; where there is none, 'answers' is {text: [], answer_start: []}")
    if wrong is not None:
        raise ValueError(f"the answer {wrong[0]!r} is not at character {wrong[1]} of the context")
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def from_tags(tokens: Sequence[str], tags: Sequence[str]) -> Row:
    """Words and their BIO (also BIOES, BILOU) tags as `text` and `entities`.

    The words are joined by single spaces; by nothing where spaces are among them, so that they are characters.
    """
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens, but {len(tags)} tags")
    entities: list[Row] = []
    space = "" if any(token.isspace() for token in tokens) else " "
    position, previous = 0, "O"
    for token, tag in zip(tokens, tags, strict=True):
        prefix, _, label = tag.partition("-")
        if tag != "O" and (prefix not in tuple("BIESLU") or not label):
            raise ValueError(f"the tag {tag!r} is not O, B-NAME or I-NAME")
        if prefix in "IEL" and previous[0] in "BI" and previous[2:] == label and tag != "O":
            entities[-1]["end"] = position + len(token)
        elif tag != "O":
            entities.append({"start": position, "end": position + len(token), "label": label})
        position, previous = position + len(token) + len(space), tag
    return {"text": space.join(tokens), "entities": entities}
