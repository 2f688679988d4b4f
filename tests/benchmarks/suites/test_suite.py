"""The frame of a suite: what its last line of JSON says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import Say
from benchmarks.figures import result
from benchmarks.figures.bars import Figure
from benchmarks.suites import suite
from benchmarks.suites.suite import Findings, Options, main

EXPECTED = {"ours": Figure("ours"), "over_peer": Figure("over the peer")}
ABSENT: dict[str, Any] = {
    "workload": "w",
    "peer": "other",
    "inputs_per_s": [],
    "missing": "not installed",
    "batch_size": None,
}


def run(options: Options, _say: Say) -> Findings:
    findings = Findings(peers=[ABSENT] if options.peers else [])
    findings.note(ours=1.0)
    findings.note(ours=3.0)
    return findings


def test_the_last_line_has_medians_and_names_the_figures_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["suite", "--quick"])

    main("encoders", "", run, EXPECTED)

    captured = capsys.readouterr()
    line = json.loads(captured.out.splitlines()[-1])
    assert (line["ours"], line["missing"]) == (2.0, ["over_peer"])
    assert "not measured here: over_peer; other: not installed" in captured.err


def test_a_suite_needs_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["suite", "--quick"])
    monkeypatch.setattr(suite, "IN_SOURCE_TREE", False)

    with pytest.raises(SystemExit, match="encoders: needs the source tree"):
        main("encoders", "", run, EXPECTED)


def test_an_installation_writes_results_into_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(result, "IN_SOURCE_TREE", False)
    monkeypatch.chdir(tmp_path)

    assert result.default_path("offline") == tmp_path / "offline.json"
    assert result.describe()["commit"].startswith("none, sextet ")
