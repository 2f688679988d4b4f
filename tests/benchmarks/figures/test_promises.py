"""What docs/reliability.md promises beside what was measured of it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.figures import promises
from benchmarks.figures.bars import FAULT_FIGURES
from benchmarks.figures.promises import BEGINS, ENDS, PROMISES, table, write_promises
from benchmarks.figures.result import RESULTS, ROOT


def test_every_figure_of_the_faults_measures_a_promise() -> None:
    assert Counter(name for one in PROMISES for name in one.figures) == Counter(list(FAULT_FIGURES))


def test_the_page_has_the_figures_of_the_result_file() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    written = text.partition(BEGINS)[2].partition(ENDS)[0]

    assert written.splitlines() == list(table(json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))))


def test_a_figure_that_misses_its_bar_says_so_and_one_that_is_missing_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "reliability.md"
    page.write_text(f"before\n{BEGINS}old\n{ENDS}\nafter\n", encoding="utf-8")
    for name, value in (("PAGE", page), ("RESULTS", tmp_path)):
        monkeypatch.setattr(promises, name, value)

    write_promises()
    assert "old" in page.read_text(encoding="utf-8")

    machine = {"commit": "abc1234", "cpu": "CPU", "cores": "2"}
    measured = {"figures": {"lost_haproxy_reload_20x": [0], "ready_false_s": [1.5]}, "machine": machine}
    (tmp_path / "faults.json").write_text(json.dumps(measured), encoding="utf-8")
    write_promises()
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- measured -->\n| promised |")
    assert text.endswith("<!-- /measured -->\nafter\n")
    assert "| `lost_haproxy_reload_20x` 0 |" in text
    assert "`ready_false_s` 1.5 (**missed**: <= 1)" in text
    assert "`long_stream_cut` not measured" in text
