"""`sextet bench` from its options to its files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.command import BenchArgs, bench
from benchmarks.figures.result import Result
from pipelines.errors import ConfigurationError, SextetError
from sextet import app
from tests.benchmarks.local_server import LocalServer, response

PARTS = ("x-queue-time: 1", "x-tokenization-time: 0.1", "x-inference-time: 2", "x-total-time: 3.5")


async def answer(_body: Any) -> bytes:
    return response(b"[]", "200 OK", *PARTS, "x-compute-tokens: 3")


@pytest.fixture(scope="module")
def result_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a little sweep on a real server."""
    with LocalServer(answer) as server:
        options = ["--url", f"http://127.0.0.1:{server.port}", "--concurrency", "1,2", "--rate", "50"]
        options += ["--duration-s", "0.3", "--warm-up-s", "0.1", "--repetitions", "2", "--n-texts", "5"]
        path = tmp_path_factory.mktemp("result") / "sweep.json"
        done = CliRunner().invoke(app, ["bench", "sweep", *options, "--output", str(path)])
    assert done.exit_code == 0, done.output
    assert "c=2 p99_ms" in json.loads(done.output.splitlines()[-1])
    return path


def test_a_result_names_machine_versions_commit_and_command(result_file: Path) -> None:
    result = Result.read(result_file)

    assert {"cpu", "cores", "versions", "commit"} <= set(result.machine)
    assert result.command.startswith("sextet")
    assert len(result.figures["c=1 inputs_per_s"]) == 2
    assert {point["label"] for point in result.points} == {"c=1", "c=2", "50/s"}


def test_the_page_needs_nothing_from_anywhere_and_its_plots_lie_beside_it(result_file: Path) -> None:
    page = result_file.with_suffix(".html").read_text(encoding="utf-8")

    assert page.count("<svg") == 3
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']*|url\((?!#)[^)]*|@import[^;]*|<script|<link""", page) == []
    assert sorted(path.name for path in result_file.parent.glob("*.png")) == [
        "sweep-latency_cdf.png",
        "sweep-throughput_latency.png",
        "sweep-time_split.png",
    ]


def test_two_results_are_compared_from_the_terminal(result_file: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "compare", str(result_file), str(result_file)])

    assert "within noise" in done.output
    assert json.loads(done.output.splitlines()[-1])["c=1 p99_ms"]["change"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (BenchArgs("offline", url="127.0.0.1:8000"), "--url is '127.0.0.1:8000'"),
        (BenchArgs("offline", task="classification"), "--task is 'classification'"),
        (BenchArgs("offline", rate="3"), "offline takes no --rate"),
        (BenchArgs("offline", concurrency="2,3"), "a list is for sweep"),
        (BenchArgs("offline", against="raw"), "--artifact"),
        (BenchArgs("offline", processes=0), "--processes is 0; allowed: above 0"),
        (BenchArgs("offline", repetitions=0), "--repetitions is 0; allowed: above 0"),
        (BenchArgs("offline", parameters="[]"), "--parameters is '..'; allowed: a JSON object"),
        (BenchArgs("sweep"), "sweep takes a list"),
        (BenchArgs("soak"), "give --rate"),
        (BenchArgs("offline", artifact=Path("absent")), "absent"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(args: BenchArgs, message: str) -> None:
    with pytest.raises(SextetError, match=message):
        bench(args, say=lambda _line: None)


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")

    with pytest.raises(ConfigurationError, match="no result of sextet bench"):
        Result.read(tmp_path / "other.json")
