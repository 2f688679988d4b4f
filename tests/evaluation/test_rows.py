"""What training files may look like, and how a bad row is reported."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.rows import BadRows, DataArgs, read
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


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_long_text_and_columns_without_a_name_are_read(tmp_path: Path, name: str) -> None:
    comma = "," if name == "a.csv" else "\t"
    table = [["text", "label", "", ""], ["word " * 40_000, "x", "", ""], ["short", "y", "", "1"]]
    found = rows(tmp_path, name, "".join(comma.join(row) + "\n" for row in table), "text-classification")
    assert [len(row["text"]) for row in found] == [200_000, 5]


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
            '{"text": "Anna Smith", "entities": [{"start": 5, "end": 10, "label": "LOC"}, '
            '{"start": 0, "end": 10, "label": "PER"}]}\n',
            "token-classification",
            "a.jsonl:1: entity LOC at 5..10 overlaps PER at 0..10; a token has one tag",
        ),
        (
            "a.jsonl",
            '{"question": "Who?", "context": "It is Anna.", "answers": {"text": ["Anna"], "answer_start": [5]}}\n',
            "question-answering",
            "a.jsonl:1: the answer 'Anna' is not at character 5 of the context",
        ),
        (
            "a.jsonl",
            '{"question": "Who?", "context": "It is Anna.", "answers": ["Anna"]}\n',
            "question-answering",
            "a.jsonl:1: 'answers' is not {text: [...], answer_start: [...]}",
        ),
        (
            "a.jsonl",
            '{"question": "Who?", "context": "It is Anna.", "answers": {"text": [""], "answer_start": [0]}}\n',
            "question-answering",
            "a.jsonl:1: an answer is empty; where there is none",
        ),
        (
            "a.jsonl",
            '{"question": "Who?", "context": "It is Anna.", "answers": {"text": ["Ann"], "answer_start": [-5]}}\n',
            "question-answering",
            "a.jsonl:1: the answer 'Ann' is not at character -5 of the context",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": [0]}\n',
            "token-classification",
            "a.jsonl:1: 'tags' is [0], not a list of",
        ),
        ("a.jsonl", '{"tokens": ["a"]}\n', "token-classification", "a.jsonl:1: 'tags' is None, not a list of texts"),
        (
            "a.jsonl",
            '{"tokens": [1], "tags": ["O"]}\n',
            "token-classification",
            "a.jsonl:1: 'tokens' is [1], not a list",
        ),
        ("a.jsonl", '{"text": "a", "entities": 5}\n', "token-classification", "a.jsonl:1: 'entities' is 5, not a list"),
        ("a.conll", "a B-\udcbb\n", "token-classification", "a.conll:1: not UTF-8"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x", "text_pair": "b"}\n{"text": "a", "label": "y"}\n',
            "text-classification",
            "a.jsonl:2: no 'text_pair', which other rows have",
        ),
        ("a.txt", "fine\nalso\ncaf\udce9\n", "text-generation", "a.txt:3: not UTF-8"),
        ("a.parquet", "x", "text-generation", "a.parquet: not Parquet"),
        ("a.xlsx", "x", "text-generation", "a.xlsx: cannot read .xlsx; known: .csv, .tsv"),
        ("a.csv", "text,label\n", "text-classification", "a.csv: no rows"),
        (
            "a.csv",
            "text,label,text\na,x,b\n",
            "text-classification",
            "a.csv:1: the header: two columns are called 'text'",
        ),
        ("a.csv", 'text,"label\na,x\n', "text-classification", "a.csv:2: the header: unexpected end of data"),
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


def test_parquet_keeps_its_records_and_names_its_labels(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    table = Dataset.from_dict({"sentence": ["좋다", "fine", " "], "label": [1, 0, 1]}, features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    said: list[str] = []
    args = DataArgs("text-classification", max_bad_rows=1)
    found = read([tmp_path / "a.parquet"], args, BadRows(1, said.append))
    assert list(found["text"]) == ["좋다", "fine"]
    assert list(found["label"]) == ["good", "bad"]
    assert any("a.parquet:row 3: 'text' is ' ', not a text; left out (bad row 1 of at most 1)" in one for one in said)


def test_squad_json_becomes_questions_with_and_without_an_answer(tmp_path: Path) -> None:
    asked = [
        {"id": "1", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 3}]},
        {"id": "2", "question": "When?", "is_impossible": True, "answers": []},
    ]
    document = {"version": "2.0", "data": [{"title": "t", "paragraphs": [{"context": "In Paris.", "qas": asked}]}]}
    found = rows(tmp_path, "a.json.gz", json.dumps(document), "question-answering")
    assert [row["answers"] for row in found] == [
        {"text": ["Paris"], "answer_start": [3]},
        {"text": [], "answer_start": []},
    ]
    broken = json.dumps(document).replace("answer_start", "start", 1)
    with pytest.raises(
        InvalidInputError, match=r"b\.json:data\[0\]\.paragraphs\[0\]\.qas\[0\]: not a question of SQuAD"
    ):
        rows(tmp_path, "b.json", broken, "question-answering")


def test_a_json_file_may_hold_a_list_or_a_line_per_row(tmp_path: Path) -> None:
    assert rows(tmp_path, "a.json", '[{"text": "one"}, {"text": "two"}]', "text-generation")[1] == {"text": "two"}
    assert rows(tmp_path, "b.json", '{"text": "one"}\n{"text": "two"}\n', "text-generation")[1] == {"text": "two"}


def test_parallel_files_are_read_line_by_line_and_must_be_as_long(tmp_path: Path) -> None:
    english, french = written(tmp_path, "a.en", "Go.\n\nHi.\n"), written(tmp_path, "a.fr.gz", "Va !\n\nSalut.\n")
    found = read([f"{english},{french}"], DataArgs("translation"))
    assert found.remove_columns("where").to_list() == [
        {"source": "Go.", "target": "Va !"},
        {"source": "Hi.", "target": "Salut."},
    ]
    assert found["where"][1] == f"{english}:3"
    short = written(tmp_path, "b.fr", "Va !\n")
    with pytest.raises(InvalidInputError, match=r"b\.fr ends before line 2, where .*a\.en goes on"):
        read([f"{english},{short}"], DataArgs("translation"))


def test_characters_with_their_tags_and_comments_are_a_text_with_its_spaces(tmp_path: Path) -> None:
    text = "## klue-1\t<서울:LC>에 산다\n서\tB-LC\n울\tI-LC\n에\tO\n \tO\n산\tO\n다\tO\n"
    path = written(tmp_path, "a.tsv", text)
    (found,) = read([path], DataArgs("token-classification", format="conll", labels={"LC": "LOC"}))
    assert (found["text"], found["entities"]) == ("서울에 산다", [{"start": 0, "end": 2, "label": "LOC"}])


def test_tags_of_other_schemes_mean_the_same(tmp_path: Path) -> None:
    bilou = "Anna B-PER\nvan I-PER\nDyk L-PER\nsaw O\nRome U-LOC\n"
    (found,) = rows(tmp_path, "a.conll", bilou, "token-classification")
    assert [one["end"] for one in found["entities"]] == [12, 21]


def test_a_column_of_another_name_is_found_said_aloud_and_overridden(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "id\treview\tsentiment\tnote\n1\tgood\tpos\tlate\n")
    said: list[str] = []
    found = read([path], DataArgs("text-classification"), BadRows(0, said.append))
    assert (found["text"][0], found["label"][0]) == ("good", "pos")
    assert f"{path}: column 'review' is taken for 'text'; --columns text=NAME takes another" in said
    chosen = read([path], DataArgs("text-classification", columns={"text": "note"}), BadRows(0, said.append))
    assert chosen["text"][0] == "late"
    both = written(tmp_path, "b.tsv", "review\tsentence\tlabel\na\tb\t1\n")
    with pytest.raises(
        InvalidInputError, match=r"b\.tsv:2: several columns may be 'text': review, sentence; choose one"
    ):
        read([both], DataArgs("text-classification"))


def test_several_labels_are_a_list_or_separated_and_a_number_is_a_number(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'text,label\none,"joy, fear"\ntwo,\n')
    found = read([path], DataArgs("text-classification", problem_type="multi_label_classification"))
    assert found["label"][:] == [["joy", "fear"], []]
    numbers = written(tmp_path, "b.csv", "text,label\none,0.5\ntwo,nan\n")
    with pytest.raises(InvalidInputError, match=r"b\.csv:3: 'label' is 'nan', not a number"):
        read([numbers], DataArgs("text-classification", problem_type="regression"))


def test_bad_rows_are_left_out_aloud_up_to_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'text,label\ngood,1\nbad\n" ",2\nfine,3\n')
    said: list[str] = []
    found = read([path], DataArgs("text-classification", max_bad_rows=2), BadRows(2, said.append))
    assert list(found["where"]) == [f"{path}:2", f"{path}:5"]
    assert said == [
        f"{path}:3: 1 columns where the header has 2; left out (bad row 1 of at most 2)",
        f"{path}:4: 'text' is ' ', not a text; left out (bad row 2 of at most 2)",
    ]
    with pytest.raises(InvalidInputError, match=r"a\.csv:4: .*not a text; bad row 2, allowed by max_bad_rows: 1"):
        read([path], DataArgs("text-classification", max_bad_rows=1), BadRows(1, said.append))


def test_lines_in_another_encoding_are_bad_rows_and_a_whole_file_has_a_setting(tmp_path: Path) -> None:
    mixed = b"text,label\n" + "좋다,1\n".encode() + "나쁘다,0\n".encode("cp949") + b"ok,1\n"
    path = written(tmp_path, "a.csv", mixed)
    with pytest.raises(InvalidInputError, match=r"a\.csv:3: not UTF-8 \(byte 0xb3\); where the whole file is so"):
        read([path], DataArgs("text-classification"))
    said: list[str] = []
    assert len(read([path], DataArgs("text-classification", max_bad_rows=1), BadRows(1, said.append))) == 2
    whole = written(tmp_path, "b.csv", "text,label\n나쁘다,0\n".encode("cp949"))
    assert read([whole], DataArgs("text-classification", encoding="cp949"))["text"][0] == "나쁘다"
    wide = written(tmp_path, "c.csv", "text,label\n나쁘다,0\n".encode("utf-16"))
    with pytest.raises(InvalidInputError, match=r"c\.csv:1: the file is UTF-16, not UTF-8; set encoding to utf-16"):
        read([wide], DataArgs("text-classification"))
    marked = written(tmp_path, "d.csv", b"\xef\xbb\xbftext,label\nok,1\n")
    assert read([marked], DataArgs("text-classification"))["text"][0] == "ok"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".conll", ".txt", ".txt.gz"]))
def test_whatever_is_in_a_file_it_is_read_or_refused_in_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for task in ("text-generation", "token-classification"):
        message = refusal(path, task)
        assert message.startswith(str(path))
        assert "\n" not in message


def test_json_lines_under_another_name_end_only_where_lines_end(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '{"text": "a\u2028b"}\n{"text": "c"}\n'.encode())
    assert list(read([path], DataArgs("text-generation"))["text"]) == ["a\u2028b", "c"]


def test_a_label_among_several_in_another_encoding_is_a_bad_row(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,label\nhello,사과\n".encode("cp949"))
    with pytest.raises(InvalidInputError, match=r"a\.csv:2: not UTF-8"):
        read([path], DataArgs("text-classification", problem_type="multi_label_classification"))


def test_a_damaged_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(b"text,label\n" + bytes(range(32, 120)) * 50)
    broken, short, other = tmp_path / "a.csv.gz", tmp_path / "a.en.gz", written(tmp_path, "a.fr", b"x\n" * 9)
    broken.write_bytes(whole[:20] + b"\xff" * 20 + whole[40:])
    short.write_bytes(whole[:-20])
    with pytest.raises(InvalidInputError, match=r"a\.csv\.gz.*cannot be read"):
        read([broken], DataArgs("text-classification"))
    with pytest.raises(InvalidInputError, match=r"a\.en\.gz: cannot be read"):
        read([f"{short},{other}"], DataArgs("translation"))


@pytest.mark.parametrize("content", [b"text,label\nabc,x\n", "text,label\nabc,x\n".encode("utf-16")[:-1]])
def test_a_file_that_is_not_utf_16_though_it_is_said_to_be_is_refused_in_one_line(
    tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(InvalidInputError, match=r"a\.csv:.*cannot be read"):
        read([written(tmp_path, "a.csv", content)], DataArgs("text-classification", encoding="utf-16"))


def refusal(path: Path, task: str) -> str:
    """Why a file cannot be read; its name where it can."""
    try:
        read([path], DataArgs(task))
    except InvalidInputError as error:
        return str(error)
    return str(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere\.csv: no such file"):
        read([tmp_path / "nowhere.csv"], DataArgs("text-classification"))
