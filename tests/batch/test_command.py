"""`sextet batch` as users run it: a process with a Ray of its own, killed and started again, and beside serving."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow import parquet

import pipelines
from deployments.cluster.guardian import of_cluster
from deployments.cluster.ray_environment import spare_port
from tests.cluster.ray_node import ADDRESS, RayNode, environment
from tests.cluster.serving import Serving, clean_environment, is_listening, left_over, write_cluster

pytestmark = pytest.mark.cluster

WAIT_S = 120.0
WORDS = ["the", "film", "was", "long", "and", "its", "end", "surprised", "nobody", "in", "the", "room"]


def texts(count: int) -> list[str]:
    """Different texts of one to twelve words."""
    return [f"{number} {' '.join(WORDS[: number % 12])}" for number in range(count)]


def rows_in(folder: Path, given: Sequence[Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one if isinstance(one, dict) else {"text": one}) + "\n" for one in given))
    return file


def command(*options: object, task: str = "text-classification") -> list[str]:
    return [sys.executable, "-m", "sextet", "batch", "--task", task, *map(str, options)]


def run(*options: object, task: str = "text-classification", status: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command(*options, task=task), capture_output=True, text=True, env=clean_environment(), check=False
    )
    assert done.returncode == status, done.stderr
    return done


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def classifier(exported: Callable[..., Path]) -> Path:
    return exported("bert", "text-classification")


def test_every_row_is_answered_in_order_and_bad_ones_are_apart(classifier: Path, tmp_path: Path) -> None:
    given: list[Any] = [{"id": number, "text": text} for number, text in enumerate(texts(300))]
    given[7] = {"id": 7, "text": None}
    given[200] = {"id": 200, "text": "x" * 200_001}
    output = tmp_path / "answers.jsonl"

    done = run(
        *("--model", classifier, "--input", rows_in(tmp_path, given), "--output", output, "--keep", "id"),
        *("--shard-rows", 64, "--parameters", '{"top_k": 1}'),
    )

    answered = [number for number in range(300) if number not in (7, 200)]
    found = lines(output)
    assert [line["id"] for line in found] == answered
    assert [line["row"] for line in found] == [number + 1 for number in answered]
    oracle = pipelines.load(classifier)
    for line in found[::17]:
        (expected,) = oracle(given[line["id"]]["text"], top_k=1)
        assert line["answer"][0]["label"] == expected["label"]
        assert line["answer"][0]["score"] == pytest.approx(expected["score"], abs=1e-4)
    bad = lines(tmp_path / "answers.bad.jsonl")
    assert [(one["row"], one["id"]) for one in bad] == [(8, 7), (201, 200)]
    assert bad[0]["reason"] == "'text' is null; allowed: a text"
    assert "298 rows at" in done.stdout
    assert f"2 bad rows in {tmp_path / 'answers.bad.jsonl'}" in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "answers.bad.jsonl",
        "answers.batch.json",
        "answers.jsonl",
        "rows.jsonl",
    ]
    again = run(
        *("--model", classifier, "--input", tmp_path / "rows.jsonl", "--output", output, "--keep", "id"),
        *("--shard-rows", 64, "--parameters", '{"top_k": 1}'),
    )
    assert "is complete already" in again.stderr
    assert lines(output) == found


def finished_parts(output: Path) -> int:
    folder = output.with_name(f"{output.name}.parts")
    return sum(not one.name.startswith(".") for one in folder.iterdir()) if folder.is_dir() else 0


def wait_until(process: "subprocess.Popen[Any]", is_due: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not is_due():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_after_a_kill_no_row_is_lost_or_there_twice(classifier: Path, tmp_path: Path) -> None:
    """`make bench-scale` kills it three times."""
    given, output = texts(3000), tmp_path / "answers.jsonl"
    options = ("--model", classifier, "--input", rows_in(tmp_path, given), "--output", output, "--shard-rows", 10)
    process = subprocess.Popen(command(*options), env=clean_environment(), stderr=subprocess.DEVNULL)
    wait_until(process, lambda: finished_parts(output) > 5)
    process.kill()
    process.wait(WAIT_S)
    assert ended(Path(f"/tmp/sextet-{process.pid}-")), "something of Ray stayed behind"
    assert not output.exists()

    done = run(*options)

    assert "parts are finished already" in done.stderr
    assert [line["row"] for line in lines(output)] == list(range(1, 3001))
    assert not output.with_name("answers.jsonl.parts").exists()


def ended(prefix: Path) -> bool:
    """Whether nothing is left of the cluster of a process that was killed; its guardian needs a moment."""
    give_up_at = time.monotonic() + WAIT_S
    while time.monotonic() < give_up_at:
        folders = list(prefix.parent.glob(f"{prefix.name}*"))
        if not folders and not any(list(of_cluster(folder)) for folder in folders):
            return True
        time.sleep(0.1)
    return False


def test_a_signal_ends_it_at_once_with_what_is_finished(classifier: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.parquet"
    options = ("--model", classifier, "--input", rows_in(tmp_path, texts(3000)), "--output", output, "--shard-rows", 10)
    process = subprocess.Popen(command(*options), env=clean_environment(), stderr=subprocess.PIPE, text=True)
    wait_until(process, lambda: finished_parts(output) > 5)
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=WAIT_S)

    assert process.returncode == 75
    assert said.splitlines()[-1] == "sextet: stopped; the same command goes on where this ended"
    assert "Traceback" not in said
    assert left_over(tree) == []
    run(*options)
    assert parquet.read_table(output).column("row").to_pylist() == list(range(1, 3001))


@pytest.mark.parametrize(("task", "architecture"), [("question-answering", "distilbert"), ("translation", "marian")])
def test_shards_of_other_tasks_are_there_as_soon_as_they_are_finished(
    task: str, architecture: str, exported: Callable[..., Path], tmp_path: Path
) -> None:
    artifact = exported(architecture, task)
    sentence = "Anna Smith lives in Paris."
    given = [{"question": "Who?", "context": sentence} if "question" in task else {"source": sentence}] * 20
    parameters = {} if "question" in task else {"generate_parameters": {"max_new_tokens": 4}}

    run(
        *("--model", artifact, "--input", rows_in(tmp_path, given), "--output", tmp_path / "answers-*.jsonl"),
        *("--shard-rows", 8, "--parameters", json.dumps(parameters)),
        task=task,
    )

    shards = sorted(tmp_path.glob("answers-*.jsonl"))
    assert [one.name for one in shards] == [f"answers-00000-{number:05}.jsonl" for number in range(3)]
    found = [line for shard in shards for line in lines(shard)]
    assert [line["row"] for line in found] == list(range(1, 21))
    asked = given[0] if "question" in task else sentence
    expected = json.loads(json.dumps(pipelines.load(artifact)(asked, **parameters)))
    assert found[0]["answer"] == pytest.approx(expected, abs=1e-4) if isinstance(expected, dict) else expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--parameters", "[1]"), "--parameters is '[1]'; allowed: a JSON object"),
        (("--column", "text"), "--column is 'text'; allowed: FIELD=COLUMN"),
        (("--max-bad-rows", "0", "--shard-rows", "2"), "1 bad rows (rows.jsonl:3: 'text' is 5; allowed: a text)"),
        (("--parameters", '{"top_k": 1}', "--column", "text=number"), "no row was answered: all 3 are bad, such as "),
        (("--threads", "999"), "--threads is 999; allowed: at most "),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_what_prevents_it_is_said_in_one_line(
    options: Sequence[str], says: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    rows_in(tmp_path, [{"text": "a", "number": 1}, {"text": "b", "number": 2}, {"text": 5, "number": 3}])
    asked = command("--model", classifier, "--input", "rows.jsonl", "--output", "answers.jsonl", *options)
    done = subprocess.run(asked, capture_output=True, text=True, env=clean_environment(), cwd=tmp_path, check=False)
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("sextet: ")]
    assert says in said
    assert "Traceback" not in done.stderr


def test_a_cluster_that_serves_answers_behind_other_requests(classifier: Path, tmp_path: Path) -> None:
    cluster = write_cluster(tmp_path, {"text-classification": classifier})
    given, output = texts(500), tmp_path / "answers.jsonl"
    with Serving.start(cluster) as serving:
        serving.wait_until_ready()
        options = ("--url", serving.url, "--input", rows_in(tmp_path, given), "--output", output)
        run(*options, "--shard-rows", 100, "--parameters", '{"top_k": 1}')
        assert serving.stop() == 0
    oracle = pipelines.load(classifier)
    found = lines(output)
    assert [line["row"] for line in found] == list(range(1, 501))
    for line in found[::50]:
        (expected,) = oracle(given[line["row"] - 1], top_k=1)
        assert line["answer"][0]["label"] == expected["label"]
        assert line["answer"][0]["score"] == pytest.approx(expected["score"], abs=1e-4)


def actors_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes of Ray Data's actors below a process."""
    found = []
    for one in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(one.cmdline()).startswith("ray::MapWorker"):
                found.append(one)
    return found


def test_parts_of_an_actor_that_dies_are_done_again(classifier: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    options = ("--model", classifier, "--input", rows_in(tmp_path, texts(3000)), "--output", output, "--shard-rows", 10)
    process = subprocess.Popen(command(*options), env=clean_environment(), stderr=subprocess.PIPE, text=True)
    wait_until(process, lambda: finished_parts(output) > 5)

    (actor,) = actors_of(psutil.Process(process.pid))
    actor.kill()
    _, said = process.communicate(timeout=WAIT_S)

    assert process.returncode == 0, said
    assert [line["row"] for line in lines(output)] == list(range(1, 3001))


def test_a_running_ray_cluster_runs_the_actors_at_low_priority(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    ports = {"--port": spare_port(), "--dashboard-port": spare_port()}
    variables = environment(tmp_path / "node")
    node = RayNode.start(
        *(tmp_path / "node", variables, ADDRESS, "--head", "--num-cpus=2"),
        *(f"{option}={port}" for option, port in ports.items()),
    )
    try:
        output, address = tmp_path / "answers.jsonl", f"{ADDRESS}:{ports['--port']}"
        give_up_at = time.monotonic() + WAIT_S
        while not is_listening(f"http://{address}"):
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
        options = ("--model", classifier, "--input", rows_in(tmp_path, texts(3000)), "--output", output)
        process = subprocess.Popen(
            command(*options, "--shard-rows", 10, "--address", address, "--actors", 2), env=variables
        )
        wait_until(process, lambda: finished_parts(output) > 5)
        actors = actors_of(psutil.Process(node.process.pid))
        assert [one.nice() for one in actors] == [psutil.Process(node.process.pid).nice() + 10] * 2
        assert process.wait(WAIT_S) == 0
        assert [line["row"] for line in lines(output)] == list(range(1, 3001))
        psutil.wait_procs(actors, timeout=WAIT_S)
        assert actors_of(psutil.Process(node.process.pid)) == []
    finally:
        node.stop()
