import json
import re

from benchmarks.figures.bar import Figure, at_least, at_most, exactly
from benchmarks.figures.bars import FIGURES
from benchmarks.figures.report import measured
from benchmarks.figures.result import RESULTS


def test_a_bar_is_met_or_missed_by_the_median_and_a_missed_one_says_by_how_much_and_why() -> None:
    faster = Figure("requests/s", at_least(1.0), lambda result: f"ours {result['ours']}/s")

    assert faster.verdict({"ours": 3}, [1.1, 1.2, 0.9]) == "met by 10%"
    assert faster.verdict({"ours": 3}, [0.8, 0.9, 1.2]) == "**missed** by 10%: ours 3/s; 1 of 3 repetitions meet it"
    assert Figure("", at_most(2)).verdict({}, [3.0]) == "**missed** by 50%: from 3 to 3"
    assert Figure("", at_most(2)).verdict({}, [3000.0]) == "**missed** by a factor of 1,500: from 3,000 to 3,000"
    assert Figure("", exactly(0)).verdict({}, [0.0]) == "met"
    assert Figure("").verdict({}, [3.0]) == ""


def test_every_result_in_the_repository_has_a_verdict_for_each_bar_and_a_reason_for_each_that_is_missed() -> None:
    for file in RESULTS.glob("*.json"):
        result = json.loads(file.read_text(encoding="utf-8"))
        if "figures" not in result:
            continue
        section = measured(result)
        rows = {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}
        for name in result["figures"]:
            if FIGURES.get(name, Figure()).bar is not None:
                assert " met" in rows[name] or "**missed**" in rows[name]
            if "**missed**" in rows[name]:
                assert re.search(r"\*\*missed\*\*( by [^:]+)?: \w", rows[name]), rows[name]
