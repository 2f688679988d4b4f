"""deploy/gpu/proof.sh as far as it goes without a GPU: every phase but the installation, on the CPU provider."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.suites.cluster import STOP_S
from tests.cluster.serving import STOP_S as TESTED_STOP_S

ROOT = Path(__file__).parents[2]
DRAINED_S = 30  # what Ray Serve waits for requests that are inside
PROOF = ROOT / "deploy" / "gpu" / "proof.sh"


def prove(*arguments: object, folder: Path = Path("/"), **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [str(PROOF), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | variables)


def kept_in_the_repository() -> list[bytes]:
    kept = (ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results" / "gpu.json")
    return [file.read_bytes() for file in kept if file.exists()]


def environment(folder: Path, *cases: str) -> Path:
    """A virtual environment whose Python is a script: of the first of `cases` ('PATTERN) commands') that its arguments
    match.
    """
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    body = "\n".join(f"{case} ;;" for case in cases)
    python.write_text(f'#!/bin/sh\ncase "$*" in\n{body}\n*) exit 0 ;;\nesac\n', encoding="utf-8")
    python.chmod(0o755)
    return folder


def phases(output: Path) -> list[list[str]]:
    lines = (output / "phases.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def test_a_phase_that_fails_is_one_line_and_the_next_one_runs(tmp_path: Path) -> None:
    venv = environment(tmp_path / "venv", "*gpu\\ encoders*) echo starting; echo 'no such GPU' >&2; exit 3")

    ended = prove("--venv", venv, "--output", tmp_path / "out", "encoders", "generators", "report")

    assert ended.returncode == 1
    assert [(one[0], one[1], one[3]) for one in phases(tmp_path / "out")] == [
        ("encoders", "3", "no such GPU"),
        ("generators", "0", ""),
    ]
    assert "encoders: failed: no such GPU" in ended.stdout


def test_a_phase_whose_time_is_over_is_stopped_in_order(tmp_path: Path) -> None:
    case = "*gpu\\ encoders*) trap 'echo cleaned up; exit 1' INT; while :; do sleep 0.1; done"
    venv = environment(tmp_path / "venv", case)

    ended = prove("--venv", venv, "--output", tmp_path / "out", "--seconds", 2, "encoders", "generators")

    assert ended.returncode == 1
    (encoders, generators) = phases(tmp_path / "out")
    assert (encoders[1], encoders[3]) == ("124", "its time of 1 s was over; cleaned up")
    assert generators[1] == "0"


def test_a_phase_that_is_interrupted_gets_the_time_that_a_cluster_takes_to_stop(tmp_path: Path) -> None:
    """A cluster that is killed leaves its replicas, and their memory on the GPU, to the next phase."""
    venv = environment(tmp_path / "venv")
    log, stub = tmp_path / "asked", tmp_path / "bin" / "timeout"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$@" >>{log}\n', encoding="utf-8")
    stub.chmod(0o755)
    path = f"{stub.parent}:{os.environ['PATH']}"

    prove("--venv", venv, "--output", tmp_path / "out", "tests", "cluster", "encoders", "generators", PATH=path)

    asked = [line for line in log.read_text(encoding="utf-8").splitlines() if "--kill-after" in line]
    grace = [int(line.partition("--kill-after=")[2].split()[0]) for line in asked]
    limits = [int(line.partition("--kill-after=")[2].split()[1]) for line in asked]
    assert len(grace) == 4
    assert min(grace[:3]) > max(STOP_S, TESTED_STOP_S)
    assert limits[3] + grace[3] <= 480
    assert grace[3] > DRAINED_S


def test_the_phase_doctor_looks_at_the_device_and_at_no_cluster_yaml(tmp_path: Path) -> None:
    ended = prove("--venv", sys.prefix, "--output", tmp_path / "out", "--device", "cpu", "doctor")

    assert ended.returncode == 0, ended.stdout
    log = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    assert "computes (CPUExecutionProvider)" in log
    assert "text-classification" not in log


def test_folders_are_those_of_the_caller(tmp_path: Path) -> None:
    environment(tmp_path / "venv", "*gpu\\ encoders*) echo found; exit 3")

    ended = prove(*("--wheels", "absent", "--venv", "venv", "--output", "out", "install", "encoders"), folder=tmp_path)

    assert ended.returncode == 1
    (install, encoders) = phases(tmp_path / "out")
    assert f"{tmp_path}/absent/manifest.json: No such file or directory" in install[3]
    assert encoders[3] == "found"


def test_a_phase_that_is_killed_is_not_said_to_be_late(tmp_path: Path) -> None:
    venv = environment(tmp_path / "venv", "*gpu\\ encoders*) echo loading; kill -KILL $$")

    ended = prove("--venv", venv, "--output", tmp_path / "out", "encoders")

    assert ended.returncode == 1
    (encoders,) = phases(tmp_path / "out")
    assert (encoders[1], encoders[3]) == ("137", "killed; loading")


def test_earlier_results_of_a_phase_that_runs_again_do_not_count(tmp_path: Path) -> None:
    venv = environment(tmp_path / "venv", "*) echo 'no GPU'; exit 4")
    (tmp_path / "out").mkdir()
    for name in ("tests.xml", "tests-cluster.xml", "encoders.json", "generators.json"):
        (tmp_path / "out" / name).touch()

    prove("--venv", venv, "--output", tmp_path / "out", "tests", "encoders")

    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {"tests-cluster.xml", "generators.json", "log.txt", "phases.tsv"}


def test_everything_is_one_exit_status(tmp_path: Path) -> None:
    venv = environment(tmp_path / "venv", "*gpu\\ report*) echo 'gpu_parity missed'; exit 1")
    common = ("--venv", venv, "--output", tmp_path / "out", "--quick")

    assert prove(*common, "doctor", "models", "tests").returncode == 0
    ended = prove(*common)

    assert ended.returncode == 1
    assert "gpu_parity missed" in ended.stdout
    assert "install" not in [one[0] for one in phases(tmp_path / "out")], "no wheels were named"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "tpu"], "device is tpu; allowed: cuda, cpu"),
        (["install"], "install needs --wheels"),
        (["encoder"], "no phase or option is named encoder; phases: install models tests cluster"),
        (["--seconds", "soon"], "seconds is soon; allowed: a positive number"),
        (["--output"], "--output needs a value"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], reason: str) -> None:
    ended = prove(*arguments)

    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"proof.sh: {reason}")


@pytest.mark.cluster
def test_the_whole_proof_runs_on_the_cpu_provider(tmp_path: Path) -> None:
    """Tests, served models, the peer and transformers' generate are real; models are tiny and windows short."""
    asked = ("--device", "cpu", "--quick", "--seconds", 3000, "--venv", Path(sys.prefix), "--output", tmp_path)

    before = kept_in_the_repository()
    ended = prove(*asked)

    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert ended.returncode == 0, f"{ended.stdout}\n{log[-4000:]}"
    assert [one[1] for one in phases(tmp_path)] == ["0"] * 6
    assert len(list(tmp_path.iterdir())) <= 8
    result = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert result["figures"]["gpu_parity"] == [1.0]
    measured = {
        "gpu_rows_s",
        "gpu_served_over_raw",
        "gpu_server_rate_over_raw",
        "gpu_over_transformers",
        "gpu_tokens_s_tiny_4",
        "gpu_tokens_s_over_transformers",
    }
    assert measured <= {name for name, values in result["figures"].items() if min(values) > 0}
    assert {one["missing"] for one in result["peers"]} == {None}
    assert result["machine"].get("gpu") is None
    assert kept_in_the_repository() == before, "only CUDA writes that"
