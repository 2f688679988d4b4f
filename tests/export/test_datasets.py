"""What training files may look like, and how a bad row is reported."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from export.datasets import DataArgs, read
from pipelines.errors import InvalidInputError


def written(tmp_path: Path, name: str, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def rows(tmp_path: Path, name: str, content: str, task: str, **columns: Any) -> list[dict[str, Any]]:
    found = read([written(tmp_path, name, content)], DataArgs(task, columns)).remove_columns("where")
    return list(found)


def test_a_csv_with_quotes_commas_and_line_breaks_is_read(tmp_path: Path) -> None:
    text = 'text,label\n"good, ""really"" good\nand long",positive\nbad,negative\n'
    assert rows(tmp_path, "a.csv", text, "text-classification") == [
        {"text": 'good, "really" good\nand long', "label": "positive"},
        {"text": "bad", "label": "negative"},
    ]


def test_a_tsv_keeps_lone_quotes_and_takes_other_column_names(tmp_path: Path) -> None:
    found = rows(tmp_path, "a.tsv.gz", 'id\tdocument\tlabel\n1\t"최고\t1\n', "text-classification", text="document")
    assert found == [{"text": '"최고', "label": "1"}]


def test_columns_given_by_number_mean_that_there_is_no_header(tmp_path: Path) -> None:
    assert rows(tmp_path, "a.tsv", "Go.\tVa !\tCC\n", "translation", source=0, target=1) == [
        {"source": "Go.", "target": "Va !"}
    ]


def test_conll_columns_become_text_with_character_spans(tmp_path: Path) -> None:
    text = "-DOCSTART- O\n\nAnna NNP B-PER\nSmith NNP I-PER\nis VBZ O\n\nSeoul NNP B-LOC\nParis NNP B-LOC\n"
    assert rows(tmp_path, "a.conll", text, "token-classification") == [
        {"text": "Anna Smith is", "entities": [{"start": 0, "end": 10, "label": "PER"}]},
        {
            "text": "Seoul Paris",
            "entities": [{"start": 0, "end": 5, "label": "LOC"}, {"start": 6, "end": 11, "label": "LOC"}],
        },
    ]


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    files = [written(tmp_path, "a.txt", "one\n\ntwo\n"), written(tmp_path, "b.jsonl", '{"text": "three"}\n')]
    assert list(read(files, DataArgs("text-generation"))["text"]) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "text", "task", "message"),
    [
        (
            "a.csv",
            "text,label\ngood,positive\nbad\n",
            "text-classification",
            "a.csv:3: 1 columns where the header has 2",
        ),
        ("a.csv", "text,score\ngood,1\n", "text-classification", "a.csv:2: no 'label'; the columns are text, score"),
        ("a.csv", 'text,label\n"open,1\n', "text-classification", "a.csv:2: unexpected end of data"),
        ("a.tsv", "text\tlabel\nok\t1\n \t0\n", "text-classification", "a.tsv:3: 'text' is ' ', not a text"),
        ("a.jsonl", '{"text": "a"}\n\n{"text"\n', "text-generation", "a.jsonl:3: not JSON"),
        ("a.jsonl", "[1]\n", "text-generation", "a.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"source": "a", "target": 3}\n', "translation", "a.jsonl:1: 'target' is 3, not a text"),
        ("a.conll.gz", "Anna B-PER\nis\n", "token-classification", "a.conll.gz:2: 'is' has no tag"),
        ("a.conll", "\n\nAnna PER\n", "token-classification", "a.conll:3: the tag 'PER' is not O, B-NAME or I-NAME"),
        (
            "a.jsonl",
            '{"text": "Anna", "entities": [{"start": 0, "end": 9, "label": "PER"}]}\n',
            "token-classification",
            "a.jsonl:1: entity PER is at 0..9 of a text of 4 characters",
        ),
        (
            "a.jsonl",
            '{"question": "Who?", "context": "It is Anna.", "answers": {"text": ["Anna"], "answer_start": [5]}}\n',
            "question-answering",
            "a.jsonl:1: the answer 'Anna' is not at character 5 of the context",
        ),
        ("a.txt", "fine\nalso\ncaf\udce9\n", "text-generation", "a.txt:3: not UTF-8"),
        ("a.parquet", "x", "text-generation", "a.parquet: not Parquet"),
        ("a.xlsx", "x", "text-generation", "a.xlsx: cannot read .xlsx; known: .csv, .tsv"),
        ("a.csv", "text,label\n", "text-classification", "a.csv: no rows"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, name: str, text: str, task: str, message: str) -> None:
    path = tmp_path / name
    data = text.encode(errors="surrogateescape")
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(InvalidInputError) as error:
        read([path], DataArgs(task))
    assert str(error.value).startswith(str(tmp_path / message.split(":")[0])), error.value
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere\.csv: no such file"):
        read([tmp_path / "nowhere.csv"], DataArgs("text-classification"))
