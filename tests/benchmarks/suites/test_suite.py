"""The frame of a suite: what its last line of JSON says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import Say
from benchmarks.figures import result
from benchmarks.figures.bar import Figure
from benchmarks.peers.peer import PeerError
from benchmarks.suites import suite
from benchmarks.suites.suite import Findings, Options, Rates, main

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


def test_a_run_without_a_figure_prints_its_line_and_ends_badly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["suite", "--quick"])

    with pytest.raises(SystemExit, match="encoders: not measured: over_peer; other: not installed"):
        main("encoders", "", run, EXPECTED)

    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["ours"], line["missing"]) == (2.0, ["over_peer"])


def test_a_peer_that_cannot_be_installed_ends_a_run_and_names_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_options: Options, _say: Say) -> Findings:
        raise PeerError("cannot be compared with other (cannot be installed: no such version)")

    monkeypatch.setattr(sys, "argv", ["suite"])

    with pytest.raises(SystemExit, match=r"encoders: cannot be compared with other .*; not measured: ours, over_peer"):
        main("encoders", "", cannot, EXPECTED)


def test_our_rate_is_taken_over_the_best_of_several_only_where_all_have_one() -> None:
    rates = Rates()
    for ours, one, other in ((10.0, 5.0, 2.0), (12.0, 4.0, 3.0)):
        rates.keep("w", {"Sextet": ours, "one": one, "other": other})

    assert rates.over_best("w", ["one", "other"]) == [2.0, 3.0]
    assert rates.over_best("w", ["one", "absent"]) == []
    rates.missing["w", "other"] = "it ended in the second repetition"
    assert rates.over_best("w", ["one", "other"]) == []


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


def test_a_run_of_one_part_makes_figures_with_the_rates_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suite, "default_path", lambda name: tmp_path / f"{name}.json")
    earlier = Rates(raw=[{"measurement": "w1", "per_s": 10.0}])
    earlier.keep("w1", {"Sextet": 10.0, "one": 5.0})
    earlier.missing["w1", "other"] = "too old"
    earlier.keep("w2", {"Sextet": 1.0, "one": 1.0})
    earlier.note(kept=1.0)
    result.Result(
        name="parts", scenario="parts", command="", load={}, figures=earlier.figures, raw=earlier.raw, points=[],
        peers=earlier.entries(), warnings=[], missing=[],
    ).write(tmp_path / "parts.json")  # fmt: skip

    now = Rates()
    now.keep("w2", {"Sextet": 6.0, "one": 2.0})
    now.peers = now.entries()
    now.complete("parts")

    assert now.over_best("w1", ["one"]) == [2.0]
    assert now.over_best("w2", ["one"]) == [3.0]
    assert now.missing == {("w1", "other"): "too old"}
    assert now.figures == {"kept": [1.0]}
    assert {one["workload"] for one in now.peers} == {"w1", "w2"}
