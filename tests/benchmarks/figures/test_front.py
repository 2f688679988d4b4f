"""The measured part of the front pages."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import front
from benchmarks.figures.front import BEGINS, ENDS, PAGES, medians, table, write_front
from benchmarks.figures.result import ROOT

ROWS = {"Sextet": 20.0, "one": 12.0, "two": 3.04, "three": 15.0, "four": 1.0, "Sextet, in-process": 25.0}
MACHINE = {"commit": "abc1234", "cpu": "CPU", "cores": "2"}


def entries(workload: str) -> list[dict[str, Any]]:
    return [{"workload": workload, "peer": peer, "inputs_per_s": [rate, rate]} for peer, rate in ROWS.items()]


def test_a_row_has_our_rate_beside_those_of_the_fastest_others() -> None:
    (workload,) = list(PAGES["README.md"].rows)[:1]
    row = table(PAGES["README.md"], dict.fromkeys(PAGES["README.md"].rows, ROWS))[2]

    assert row == f"| {PAGES['README.md'].rows[workload]} | 20 | three 15, one 12, two 3 |"
    assert medians([*entries("w"), {"workload": "w", "peer": "gone", "inputs_per_s": []}]) == {"w": ROWS}


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_the_marks_and_the_same_rows(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert 0 < text.index(BEGINS) < text.index(ENDS)
    assert list(PAGES[page].rows) == list(PAGES["README.md"].rows)


def test_the_pages_are_written_whole_or_keep_what_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROOT", tmp_path), ("RESULTS", tmp_path), ("PLOT", tmp_path / "docs" / "throughput.png")):
        monkeypatch.setattr(front, name, value)
    (tmp_path / "docs").mkdir()
    before = "# Name\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n"
    for page in PAGES:
        (tmp_path / page).write_text(before, encoding="utf-8")
    point = {"measurement": "open loop", "rate_per_s": 1.0, "tokens_per_s": 50.0, "first_token_ms": 90.0}
    peers = [entry for name in PAGES["README.md"].rows for entry in entries(name)]
    (tmp_path / "encoders.json").write_text(json.dumps({"peers": peers, "machine": MACHINE, "raw": []}))

    write_front()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == before

    raw = [{**point, "server": server} for server in ("Sextet", "other")]
    (tmp_path / "generation.json").write_text(json.dumps({"peers": [], "machine": MACHINE, "raw": raw}))
    write_front()
    written = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert written.startswith("# Name\n<!-- measured -->\n| per second")
    assert "(abc1234)" in written
    assert "(docs/throughput.png)\n<!-- /measured -->\nafter" in written
    assert front.PLOT.read_bytes().startswith(b"\x89PNG")
