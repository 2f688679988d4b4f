"""Promises: the table of docs/reliability.md between its marks: what is promised, what was measured, what cannot be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.figures.bar import shown
from benchmarks.figures.bars import FAULT_FIGURES
from benchmarks.figures.result import RESULTS, ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGINS, ENDS = "<!-- measured -->\n", "<!-- /measured -->"
FAULTS = "faults"


@dataclass(frozen=True)
class Promise:
    """`figures` of `make faults` measure it; `limit` is what it leaves out."""

    text: str
    figures: tuple[str, ...]
    limit: str = ""


PROMISES = (
    Promise(
        "a replica dies: each short request is answered, by another replica or by the next one",
        ("lost_replica_killed", "gap_replica_killed_s", "gap_replica_of_two_killed_s"),
        "streams that have begun in it break off; a body above 64 KiB inside it gets 503",
    ),
    Promise(
        "a replica hangs: the other one answers, and takes what was inside it in the end",
        ("lost_replica_hung", "gap_replica_hung_s"),
        "for six seconds requests still go to it, and wait until their deadline",
    ),
    Promise(
        "HAProxy dies: back within two seconds with its routes",
        ("lost_haproxy_killed", "gap_haproxy_killed_s"),
        "requests inside it are lost, and connections refused while it is away",
    ),
    Promise("HAProxy is reloaded 20 times: nothing is lost", ("lost_haproxy_reload_20x",)),
    Promise(
        "the number of replicas changes 40 times: nothing is lost",
        ("lost_scale_1_4_1_20x",),
        "on as many cores answers become slow while replicas load",
    ),
    Promise("Ray Serve's controller dies: nobody notices", ("gap_controller_killed_s",), "no replica starts meanwhile"),
    Promise(
        "a new model takes over without a pause, as does a replica that is replaced",
        ("gap_new_model_s", "lost_rolling_update"),
        "both need room beside the old one",
    ),
    Promise(
        "streams of minutes go on through changes and SIGTERM",
        ("long_stream_cut",),
        "longer than `drain_timeout_s`: an error event",
    ),
    Promise(
        "`/ready` tells the truth within a second",
        ("ready_false_s",),
        "a replica that hangs looks like a busy one: six seconds",
    ),
    Promise(
        "five times too many requests: as many are answered in time as ever, the others refused at once",
        ("overload5_goodput", "overload5_refusal_p99_ms", "overload_recovery_s"),
    ),
    Promise("hostile requests get no 5xx, and keep no memory", ("fuzz_5xx", "fuzz_memory_mib")),
    Promise("keys cost next to nothing", ("guard_cost",)),
)


def write_promises() -> None:
    """Rewrite the table from the result file, where that is there."""
    file = RESULTS / f"{FAULTS}.json"
    if file.exists():
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGINS)
        _, _, after = rest.partition(ENDS)
        written = "\n".join(table(json.loads(file.read_text(encoding="utf-8"))))
        PAGE.write_text(f"{before}{BEGINS}{written}\n{ENDS}{after}", encoding="utf-8")


def table(result: Mapping[str, Any]) -> Sequence[str]:
    machine = result["machine"]
    return [
        "| promised | measured | what cannot be |",
        "|---|---|---|",
        *(
            f"| {one.text} | {'; '.join(_measured(result, name) for name in one.figures)} | {one.limit} |"
            for one in PROMISES
        ),
        "",
        f"`make faults`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores. "
        "[performance.md](performance.md#faults) says what each figure is.",
    ]


def _measured(result: Mapping[str, Any], name: str) -> str:
    """The median, and the bar where it misses that."""
    if name not in result["figures"]:
        return f"`{name}` not measured"
    value, bar = median(result["figures"][name]), FAULT_FIGURES[name].bar
    missed = f" (**missed**: {bar})" if bar is not None and not bar.met(value) else ""
    return f"`{name}` {shown(value)}{missed}"
