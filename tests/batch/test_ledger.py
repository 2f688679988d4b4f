"""What a run leaves behind when it is killed between any two writes, and how the next one goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch.args import BatchArgs
from batch.ledger import Ledger
from batch.scorer import Finished
from batch.storage import Storage
from pipelines.errors import ConfigurationError
from tests.google_storage import GoogleStorage
from tests.s3 import S3

PLAN = {"task": "text-classification", "model": "abc"}
RESULT = {"rows": 3, "bad_rows": 1}


def part(number: int, content: bytes, bad: bytes = b"") -> Finished:
    return Finished(0, number, 2, 0.5, False, True, content=content, bad=bad, n_bad=bad.count(b"\n"))


PARTS = [part(0, b"one\n"), part(1, b"two\n", bad=b"bad\n"), part(2, b"three\n")]
PLACES = [one.place for one in PARTS]


@pytest.fixture(params=["file", "shards", "s3", "gs"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An output of each kind; `tmp_path/out` holds its files."""
    if request.param in ("file", "shards"):
        yield str(tmp_path / "out" / ("a.jsonl" if request.param == "file" else "a-*.jsonl"))
        return
    (tmp_path / "out").mkdir()
    request.getfixturevalue("aws" if request.param == "s3" else "google")
    with S3(tmp_path) if request.param == "s3" else GoogleStorage(tmp_path) as storage:
        monkeypatch.setenv("AWS_ENDPOINT_URL" if request.param == "s3" else "STORAGE_EMULATOR_HOST", storage.url)
        yield f"{request.param}://out/a.jsonl"


def ledger(output: str) -> Ledger:
    return Ledger(BatchArgs("text-classification", ("in.csv",), output, model="m"))


def files(folder: Path) -> dict[str, str]:
    found = sorted(one for one in (folder / "out").rglob("*") if one.is_file() and one.name != "a.batch.json")
    return {one.relative_to(folder / "out").as_posix(): one.read_text() for one in found}


def complete(output: str) -> dict[str, str]:
    if "*" in output:
        return {
            "a-00000-00000.jsonl": "one\n",
            "a-00000-00001.jsonl": "two\n",
            "a-00000-00002.jsonl": "three\n",
            "a.bad.jsonl": "bad\n",
        }
    return {"a.bad.jsonl": "bad\n", "a.jsonl": "one\ntwo\nthree\n"}


def test_parts_that_come_in_any_order_become_the_output_in_order(output: str, tmp_path: Path) -> None:
    kept = ledger(output)
    assert kept.open(PLAN) is None
    for one in (PARTS[2], PARTS[0], PARTS[1]):
        kept.write(one)
    kept.end([PARTS[2].place, PARTS[0].place, PARTS[1].place], RESULT)

    assert files(tmp_path) == complete(output)
    assert json.loads((tmp_path / "out" / "a.batch.json").read_text()) == {"plan": PLAN, "result": RESULT}
    assert ledger(output).open(PLAN) == RESULT


@pytest.mark.parametrize("writes", range(16))
def test_a_run_that_is_killed_after_any_write_goes_on(
    output: str, tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    left = [writes]

    def counted(method: Any) -> Any:
        def call(self: Storage, *arguments: Any) -> Any:
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return method(self, *arguments)

        return call

    from batch.storage import LocalStorage, UrlStorage

    with monkeypatch.context() as killing:
        for kind in (LocalStorage, UrlStorage):
            for name in ("write", "writing", "remove"):
                killing.setattr(kind, name, counted(getattr(kind, name)))
        try:
            first = ledger(output)
            if first.open(PLAN) is None:
                for one in PARTS:
                    first.write(one)
                first.end(PLACES, RESULT)
        except KilledError:
            pass

    second = ledger(output)
    if second.open(PLAN) is None:
        for one in PARTS:
            if one.place in second.finished:
                assert second.bad_rows(one.place) == one.n_bad
            else:
                second.write(one)
        second.end(PLACES, RESULT)

    assert files(tmp_path) == complete(output)


def test_an_output_that_was_made_from_something_else_is_refused(output: str) -> None:
    kept = ledger(output)
    kept.open(PLAN)
    kept.write(PARTS[0])
    says = r'was begun with another model \("abc", now "def"\); remove .*batch\.json'
    with pytest.raises(ConfigurationError, match=says):
        ledger(output).open({**PLAN, "model": "def"})


def test_files_that_are_there_without_a_plan_are_not_overwritten(output: str, tmp_path: Path) -> None:
    name = output.rpartition("/")[2].replace("*", "00000-00000")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("somebody's")
    with pytest.raises(ConfigurationError, match=f"{name} exists already; remove it, or name another output"):
        ledger(output).open(PLAN)
    assert files(tmp_path) == {name: "somebody's"}


def test_two_runs_do_not_write_the_same_output(tmp_path: Path) -> None:
    first, second = (ledger(str(tmp_path / "a.jsonl")) for _ in range(2))
    refused = pytest.raises(ConfigurationError, match=r"another sextet batch writes .*a\.jsonl")
    with first.held(), refused, second.held():
        pass
    with second.held():
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = ledger(str(tmp_path / "file" / "a.jsonl"))
    refused = pytest.raises(ConfigurationError, match=r"--output .*a\.jsonl cannot be written \(FileExistsError: ")
    with refused, kept.held():
        pass
