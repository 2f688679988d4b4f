"""Report: docs/performance.md, generated from the result files alone."""

import json
from statistics import median
from typing import Any

from benchmarks.figures.bar import Figure, shown
from benchmarks.figures.bars import FIGURES, GPU_FIGURES
from benchmarks.figures.promises import write_promises
from benchmarks.figures.result import RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"

INTRODUCTION = """# Performance

Generated from benchmarks/results by the commands that write those; every section names its machine and its command. A
small machine is noisy: read ratios and differences, not third digits. [benchmarking.md](benchmarking.md) says how to
measure.
"""
GPU = "gpu"
SECTIONS = (
    *("footprint", "encoders", "generation", "fairness", "service", "faults", "scale", "soak", "soak-generation"),
    GPU,
)
TITLES = {GPU: "GPU"}
PUBLISHED = """Published figures of an H200, for scale:

| what | rows/s | source |
|---|---:|---|
| BERT-large, int8, SQuAD's questions of up to 384 tokens, Offline | 9,224 | MLPerf Inference 4.1 |
| the same, Server: p99 within 130 ms | 7,261 | MLPerf Inference 4.1 |

They are an eighth of what eight H200 did, 73,791 and 58,091, in the closed division of BERT-99 at
[mlcommons.org](https://mlcommons.org/benchmarks/inference-datacenter/). BERT-large has 24 layers of width 1,024: a
token costs about 3.6 times as much as in BERT-base.
"""


def write_report() -> None:
    """Rewrite docs/performance.md from every result file that is there, and the figures of docs/reliability.md."""
    written = [INTRODUCTION]
    for name in SECTIONS:
        file = RESULTS / f"{name}.json"
        if file.exists():
            result = json.loads(file.read_text(encoding="utf-8"))
            written.append(footprint(result) if name == "footprint" else measured(result))
        elif name == GPU:
            written.append(unmeasured())
        if name == GPU:
            written.append(PUBLISHED)
    PAGE.write_text("\n".join(written), encoding="utf-8")
    write_promises()


def unmeasured() -> str:
    """The section of the GPU's figures as long as there are none."""
    lines = [
        f"## {TITLES[GPU]}",
        "",
        "Missing: no machine with a GPU has measured these figures yet. `deploy/gpu/proof.sh` does, in eight minutes; "
        "[benchmarking.md](benchmarking.md#gpus) says how.",
        "",
        "| figure | bar | what |",
        "|---|---|---|",
        *(f"| `{name}` | {figure.bar or ''} | {figure.what} |" for name, figure in GPU_FIGURES.items()),
    ]
    return "\n".join([*lines, ""])


def measured(result: dict[str, Any]) -> str:
    """The section of a result with one value per repetition of each figure, each with its bar and whether it is met."""
    lines = [
        f"## {TITLES.get(result['name'], result['name'].capitalize())}",
        "",
        "| figure | median | repetitions | bar | met? | what |",
        "|---|---:|---|---|---|---|",
    ]
    for name, values in result["figures"].items():
        figure = FIGURES.get(name, Figure())
        repetitions = ", ".join(map(shown, values))
        verdict = figure.verdict(result, values)
        bar = figure.bar or ""
        lines.append(f"| `{name}` | {shown(median(values))} | {repetitions} | {bar} | {verdict} | {figure.what} |")
    lines += [
        f"| `{name}` | not measured | | {FIGURES[name].bar or ''} | | {FIGURES[name].what} |"
        for name in result.get("missing", [])
    ]
    if result["peers"]:
        lines += [
            "",
            "| workload | server | its batches | per second |",
            "|---|---|---:|---|",
            *map(_peer, result["peers"]),
        ]
    bottlenecks = [point["label"] for point in result["points"] if point["generator"]["bottleneck"]]
    if bottlenecks:
        named = ", ".join(dict.fromkeys(bottlenecks))
        lines += ["", f"The load generator, which shares the cores, may have been the limit in: {named}."]
    return "\n".join([*lines, "", _provenance(result), ""])


def _peer(entry: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate:.1f}" for rate in entry["inputs_per_s"]) or f"not measured: {entry['missing']}"
    return f"| {entry['workload']} | {entry['peer']} | {entry['batch_size'] or ''} | {rates} |"


def footprint(result: dict[str, Any]) -> str:
    """The section of the footprint: seconds to ready, memory and latency of each replica without load."""
    lines = [
        "## Footprint",
        "",
        f"Ready in **{result['ready_s']:.1f} s** with all artifacts built (from the command to `ready`), "
        f"stopped in {result['stop_s']:.1f} s after SIGTERM. One replica per task, idle but for one client.",
        "",
        "| task | model files, MiB | replica resident, MiB | above the files, MiB "
        "| in-process p50, ms | served p50, ms | added, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['task']} | {row['model_files_mib']:.0f} | {row['resident_mib']:.0f} | {row['above_files_mib']:.0f} "
        f"| {row['in_process_p50_ms']:.2f} | {row['served_p50_ms']:.2f} | {row['added_p50_ms']:+.2f} |"
        for row in result["tasks"]
    ]
    if "figures" in result:
        lines += ["", "| figure | value | bar | met? | what |", "|---|---:|---|---|---|"]
        lines += [_footprint_figure(result, name, values) for name, values in result["figures"].items()]
    lines += [
        "",
        "*In-process* is `pipelines.load(artifact, threads=...)` in a plain Python process with the same body and "
        "threads; *served* is one keep-alive HTTP connection through HAProxy, one request at a time; *added* is their "
        "difference. Generation and summarization decode 32 new tokens, greedily.",
        "",
        _provenance(result),
        "",
    ]
    return "\n".join(lines)


def _footprint_figure(result: dict[str, Any], name: str, values: list[float]) -> str:
    figure = FIGURES[name]
    return f"| `{name}` | {shown(median(values))} | {figure.bar} | {figure.verdict(result, values)} | {figure.what} |"


def _provenance(result: dict[str, Any]) -> str:
    machine = result["machine"]
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    return (
        f"`{result['command']}`, commit {machine['commit']}: {gpu}{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory']}, {machine['system']}, {machine['versions']}. {result.get('remark', '')}"
    ).rstrip()
