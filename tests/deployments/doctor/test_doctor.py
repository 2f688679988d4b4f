"""`sextet doctor`: the page, the same as JSON, and the exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sextet
from deployments.doctor.examine import examine
from deployments.doctor.finding import Finding, Report
from pipelines.runtime.package import SOURCE_TREE
from tests.artifacts import write_artifact
from tests.deployments.doctor.test_cluster import without_cuda, write


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        sextet.main(["doctor", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().out


def test_a_cluster_that_fits_is_a_page_and_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_artifact(tmp_path / "model")
    path = write(tmp_path, {"model": "model"})
    code, page = doctor(capsys, str(path))
    assert code == 0, page
    sections = [line for line in page.splitlines() if line and not line.startswith(" ")]
    assert sections[:-1] == ["machine", "software", "devices", "cluster.yaml"]
    assert sections[-1].startswith("0 errors, ")
    assert all(line.split()[0] in ("ok", "note", "warning") for line in page.splitlines() if line.startswith(" "))


def test_the_json_is_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_artifact(tmp_path / "model")
    path = write(tmp_path, {"model": "model"}, ray_actor_options={"num_cpus": 100_000})
    report = examine(path)
    document, page = json.loads(report.to_json()), report.text().splitlines()
    assert (report.exit_code, document["ok"], document["errors"]) == (1, False, 1)
    assert page[-1] == f"1 error, {document['warnings']} warning{'s' * (document['warnings'] != 1)}"
    lines = [" ".join(line.split()) for line in page if line.startswith(" ")]
    assert lines == [
        f"{one['level']} {one['name']} {one['text']}{'; ' if one['remedy'] else ''}{one['remedy']}"
        for one in document["findings"]
    ]
    (wrong,) = [one for one in document["findings"] if one["level"] == "error"]
    assert wrong["facts"]["first_replicas"] == pytest.approx(100_000.1)
    code, text = doctor(capsys, str(path), "--json")
    assert (code, json.loads(text).keys()) == (1, document.keys())


def test_without_a_file_only_the_machine_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, page = doctor(capsys)
    assert code == 0
    assert "none was looked at; sextet doctor cluster.yaml" in page
    write_artifact(tmp_path / "model")
    write(tmp_path, {"model": "model"})
    assert "cluster.yaml, tasks: 1" in doctor(capsys)[1], "that of the folder is taken"


def test_a_device_alone_is_asked_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text("not looked at", encoding="utf-8")
    assert doctor(capsys, "--device", "cpu")[0] == 0
    with pytest.raises(SystemExit) as refused:
        sextet.main(["doctor", "--device", "cud"])
    line = "sextet: --device is 'cud' (did you mean 'cuda'?); allowed: cpu, cuda, tensorrt"
    assert refused.value.code == line
    for name, meant in (("gpu", "cuda"), ("GPU", "cuda"), ("trt", "tensorrt")):  # gpu is spelled nearly like cpu
        with pytest.raises(SystemExit) as refused:
            sextet.main(["doctor", "--device", name])
        assert f"is {name!r} (did you mean {meant!r}?)" in str(refused.value.code)


@without_cuda
def test_a_device_that_does_not_compute_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, page = doctor(capsys, "--device", "tensorrt")
    assert code == 1
    assert page.splitlines()[-1].startswith("1 error, ")


def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, page = doctor(capsys, str(tmp_path / "other.yaml"))
    assert code == 1
    assert f"error file {tmp_path}/other.yaml does not exist; name a Ray Serve config" in " ".join(page.split())


def test_every_finding_is_one_line() -> None:
    report = Report([Finding("a", "b", "c", "error", "d"), Finding("a", "longer", "e"), Finding("f", "g", "h", "note")])
    assert report.text() == (
        "a\n  error    b       c; d\n  ok       longer  e\n\nf\n  note     g       h\n\n1 error, 0 warnings"
    )
    assert report.exit_code == 1


def test_an_onnxruntime_that_does_not_import_is_an_error_of_the_cpu(tmp_path: Path) -> None:
    metadata = tmp_path / "onnxruntime-9.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 9.0\n", encoding="utf-8")
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('libstdc++.so.6: version')")
    code, page = doctor_with(tmp_path)
    assert code == 1
    assert "error cpu onnxruntime crashes on it (exit code 1: ImportError: libstdc++.so.6: version)" in page


def test_an_installation_without_the_packages_that_serve_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('No module named starlette', name='starlette')")
    remedy = f"pip install -e '{SOURCE_TREE}[serve]'"
    assert doctor_with(tmp_path) == (1, f"sextet: sextet doctor needs starlette: {remedy}")


def doctor_with(packages: Path) -> tuple[int, str]:
    """Exit code and page, spaces joined, of a process that finds these packages first."""
    command = [sys.executable, "-m", "sextet", "doctor"]
    env = os.environ | {"PYTHONPATH": str(packages)}
    done = subprocess.run(command, env=env, cwd=packages, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())
