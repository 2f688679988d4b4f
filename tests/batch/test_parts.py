"""Rows of every kind of input as parts: each with its place, the same parts in every run."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from batch import sources
from batch.args import BatchArgs
from batch.parts import Part, Reading
from pipelines.errors import ConfigurationError, SextetError
from tests.data_hub import DataHub
from tests.google_storage import GoogleStorage
from tests.s3 import S3

TEXTS = ["좋아요", 'a, "quoted" text', "two\nlines", "last"]


def args(*inputs: str, **changes: object) -> BatchArgs:
    given = {"task": "text-classification", "output": "out.jsonl", "model": "m", "shard_rows": 3, **changes}
    return BatchArgs(inputs=inputs, **given)  # type: ignore[arg-type]


def parts_of(asked: BatchArgs, finished: Iterable[tuple[int, int]] = ()) -> list[Part]:
    found = sources.find(asked.inputs, asked.format)
    reading = Reading.of(asked, found[0])
    return [part for index, one in enumerate(found) for part in reading.parts(index, one, frozenset(finished))]


def inputs_of(asked: BatchArgs) -> list[object]:
    return [row.input for part in parts_of(asked) for row in part.rows]


def write(folder: Path, name: str) -> Path:
    """TEXTS with their numbers as `id`, in the format of the name."""
    file, rows = folder / name, [{"id": str(number), "text": text} for number, text in enumerate(TEXTS)]
    file.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif name.endswith(".csv"):
        quoted = [f'{row["id"]},"{row["text"].replace(chr(34), 2 * chr(34))}"' for row in rows]
        file.write_text("\n".join(["id,text", *quoted, ""]), encoding="utf-8")
    elif name.endswith(".gz"):
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.ndjson.gz", "rows.parquet"])
def test_a_file_is_cut_into_parts_whose_rows_have_their_place(tmp_path: Path, name: str) -> None:
    file = str(write(tmp_path, name))

    first, second = parts_of(args(file, keep=("id",)))

    assert [row.input for row in (*first.rows, *second.rows)] == TEXTS
    assert [row.number for row in (*first.rows, *second.rows)] == [1, 2, 3, 4]
    assert [row.kept for row in second.rows] == [{"id": "3"}]
    assert (first.place, first.count, first.is_last) == ((0, 0), 3, False)
    assert (second.place, second.count, second.is_last, second.share) == ((0, 1), 1, True, 1.0)
    assert all(row.where.startswith(f"{file}:") for row in first.rows)


def test_a_finished_part_comes_without_its_rows_and_changes_nothing_of_the_others(tmp_path: Path) -> None:
    asked = args(str(write(tmp_path, "rows.jsonl")), shard_rows=2)
    whole = parts_of(asked)

    again = parts_of(asked, finished=[(0, 0)])

    assert (again[0].rows, again[0].count) == ([], 2)
    assert again[1] == whole[1]


def test_a_part_ends_early_where_its_texts_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.parts.PART_CHARACTERS", 10)
    file = tmp_path / "long.txt"
    file.write_text("123456\n" * 4)
    assert [part.count for part in parts_of(args(str(file)))] == [2, 2]


def test_rows_that_cannot_be_read_keep_their_number_and_say_why(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"id,text\n1,fine\n2,too,many\n3,\xff\n4,good\n")

    rows = parts_of(args(str(file), shard_rows=10))[0].rows

    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert rows[1].problem == "3 columns where the header has 2"
    assert rows[1].where == f"{file}:3"
    assert (rows[2].problem or "").startswith("not UTF-8, or no data of JSON")
    assert [row.problem is None for row in rows] == [True, False, False, True]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": 5}, "'text' is 5; allowed: a text"),
        ({"text": None}, "'text' is null; allowed: a text"),
        ({"id": 1}, "no column 'text'; the columns are id"),
    ],
)
def test_a_row_without_a_text_is_bad(tmp_path: Path, row: dict[str, object], problem: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{json.dumps(row)}\n')
    assert problem in (parts_of(args(str(file)))[0].rows[1].problem or "")


def test_several_inputs_and_patterns_keep_their_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    assert inputs_of(args(str(tmp_path / "c.txt"), str(tmp_path / "[ab].txt"))) == ["c", "a", "b"]


def test_columns_are_named_guessed_or_nested(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"review": "one", "translation": {"en": "two"}, "id": 1}) + "\n")
    assert inputs_of(args(str(file))) == ["one"]
    assert inputs_of(args(str(file), columns={"text": "translation.en"})) == ["two"]
    table = tmp_path / "rows.tsv"
    table.write_text("1\tthree\n")
    assert inputs_of(args(str(table), columns={"text": 1})) == ["three"]


def test_the_fields_of_a_task_become_one_input(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"query": "Who?", "context": "Anna."}) + "\n")
    assert inputs_of(args(str(file), task="question-answering")) == [{"question": "Who?", "context": "Anna."}]
    file.write_text(json.dumps({"text": "one", "text_pair": "two"}) + '\n{"text": "alone"}\n')
    assert inputs_of(args(str(file))) == [{"text": "one", "text_pair": "two"}, "alone"]
    file.write_text(json.dumps({"source": "Guten Tag", "target": "Bonjour"}) + "\n")
    assert inputs_of(args(str(file), task="translation")) == ["Guten Tag"]


@pytest.mark.usefixtures("aws")
def test_a_bucket_of_s3_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "bucket", "rows.parquet")
    write(tmp_path / "bucket" / "data", "rows.jsonl")
    with S3(tmp_path) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        assert inputs_of(args("s3://bucket/rows.parquet", "s3://bucket/data/*.jsonl")) == TEXTS * 2
        (before,) = sources.find(["s3://bucket/rows.parquet"])
        was = before.identity()
        write(tmp_path / "bucket", "rows.jsonl").replace(tmp_path / "bucket" / "rows.parquet")
        before_cache_is_gone(before)
        assert before.identity() != was
        with pytest.raises(SextetError, match=r"s3://bucket/none\.jsonl: no such file"):
            parts_of(args("s3://bucket/none.jsonl"))


def before_cache_is_gone(source: sources.Source) -> None:
    import fsspec

    fsspec.url_to_fs(source.name)[0].invalidate_cache()


@pytest.mark.usefixtures("google")
def test_a_bucket_of_google_storage_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "bucket", "rows.csv")
    with GoogleStorage(tmp_path) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        assert inputs_of(args("gs://bucket/rows.csv")) == TEXTS


READ = """
import sys
from tests.batch.test_parts import args, parts_of
for part in parts_of(args(sys.argv[1])):
    for row in part.rows:
        print(row.number, row.where, row.input)
"""


def test_a_split_of_the_hub_is_read(tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "data" / "train.jsonl").write_text('{"document": "좋다"}\n{"document": "나쁘다"}\n')
    with DataHub("someone/reviews", tmp_path / "hub") as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", READ, "someone/reviews:train"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.stdout.splitlines()[-2:] == [
        "1 someone/reviews:train row 1 좋다",
        "2 someone/reviews:train row 2 나쁘다",
    ], done.stderr


@pytest.mark.parametrize(
    ("content", "changes", "says"),
    [
        ("id,body,content\n1,a,b\n", {"task": "translation"}, "several columns may be 'text': body, content"),
        ("id,txt\n1,a\n", {}, "no column 'text'; the columns are id, txt; choose one with --column text=NAME"),
        ("id,text\n1,a\n", {"columns": {"text": "txt"}}, r"no column 'txt' \(did you mean 'text'\?\)"),
        ("id,text\n1,a\n", {"keep": ("ids",)}, r"no column 'ids' \(did you mean 'id'\?\)"),
        ("id,text\n", {}, "no row can be read"),
    ],
)
def test_columns_that_are_not_there_are_refused(
    tmp_path: Path, content: str, changes: dict[str, object], says: str
) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(SextetError, match=says):
        parts_of(args(str(tmp_path / "rows.csv"), **changes))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.csv", "none.csv: no such file"),
        ("*.csv", r"\*\.csv: no file has such a name"),
        ("rows.xlsx", r"cannot read \.xlsx; allowed: \.csv, "),
        ("broken.parquet", "broken.parquet: not Parquet"),
        ("nosuch://bucket/a.csv", "nosuch"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "rows.xlsx").write_text("")
    (tmp_path / "broken.parquet").write_text("broken")
    with pytest.raises(SextetError, match=says) as refused:
        parts_of(args(name if "://" in name else str(tmp_path / name)))
    assert "\n" not in str(refused.value)


def test_an_input_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    file = str(write(tmp_path, "rows.jsonl"))
    with pytest.raises(ConfigurationError, match="twice; allowed: each input once"):
        sources.find([file, str(tmp_path / "*.jsonl")])
