"""Report: docs/performance.md, generated from the result files. Nothing in it is written by hand."""

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"

INTRODUCTION = """# Performance

Generated from benchmarks/results by the commands that write those; every section names its machine and its command. A
small machine is noisy: read ratios and differences, not third digits. [benchmarking.md](benchmarking.md) says how to
measure.
"""
ENCODER_FIGURES = {
    "offline_served_over_raw": (
        "BERT-base shape, int8, 128 tokens, Offline: inputs/s over the same artifact in-process with its best batch",
        ">= 0.94",
    ),
    "server_rate_over_raw": (
        "the same, Server: highest Poisson rate with p99 within 8 times the service time of one, over raw throughput",
        ">= 0.75",
    ),
    "mixed_over_count_batching": (
        "BERT-base shape, log-normal lengths (median 24, p95 200 tokens), Offline, over in-process batches of 8 "
        "by arrival",
        ">= 1.5",
    ),
    "small_over_noop": (
        "MiniLM-L6 shape, 16 tokens, c=32: requests/s over those of a replica that does nothing, on the same ingress",
        ">= 0.6",
    ),
    "over_best_peer": (
        "the smaller of BERT-base 128 and MiniLM mixed, Offline, over the best other server on the same weights",
        ">= 1.2",
    ),
    "over_best_peer_without_our_graph": (
        "the same over the best of those that serve what they make of the checkpoint themselves, or Optimum makes",
        "",
    ),
    "over_ray_serve_transformers": ("the same over Ray Serve with a transformers pipeline and `@serve.batch`", ">= 3"),
    "added_p50_ms": (
        "what HTTP, ingress and batching add to one request at a time (MiniLM-L6 shape, 16 tokens)",
        "<= 2",
    ),
    "soak_memory_growth": ("a replica's resident memory after 10 minutes at 70% of its capacity", "<= 0.03"),
}

GENERATION_FIGURES = {
    "one_stream_over_genai": (
        "SmolLM2-135M, prompts of 64 tokens, 64 new ones, greedy: one stream, engine in-process, tokens/s over "
        "onnxruntime-genai int4",
        ">= 1.0",
    ),
    "served16_over_genai_ctx64": (
        "the same with 16 slots over HTTP, Poisson arrivals that keep them taken, over genai's static batch of 16",
        ">= 1.0",
    ),
    "served16_over_genai_ctx256": ("the same with prompts of 256 tokens", ">= 1.3"),
    "served_over_engine": ("16 streams over HTTP over 16 in the engine in-process, tokens/s", ">= 0.93"),
    "served_over_optimum": (
        "served to 16, over `ORTModelForCausalLM.generate` on Optimum's plain graph, one at a time",
        ">= 5",
    ),
    "translation_greedy_over_ct2": (
        "Marian-size translation to 16 clients over HTTP, sentences/s over CTranslate2 int8 on the same weights, "
        "in-process batches of 16",
        ">= 1.0",
    ),
    "translation_beam4_over_ct2": ("the same with four beams", ">= 1.0"),
    "ttft_p99_chunks": (
        "p99 of the wait for the first token of a short prompt while one of 1,000 tokens is read, in the time of a "
        "chunk of a prompt",
        "<= 3",
    ),
    "step_overhead": ("share of the time of rounds of 16 rows that is spent outside of ONNX Runtime", "<= 0.10"),
    "different_answers": ("answers in a crowd that differ from those of the same request alone", "0"),
    "free_slots_at_the_end": ("of 16 slots", "16"),
}
FIGURES = ENCODER_FIGURES | GENERATION_FIGURES


def write_report() -> None:
    """Rewrite docs/performance.md from every result file that is there."""
    sections = {
        "footprint": footprint,
        "encoders": measured,
        "generation": measured,
        "soak": measured,
        "soak-generation": measured,
    }
    written = [INTRODUCTION]
    for name, section in sections.items():
        file = RESULTS / f"{name}.json"
        if file.exists():
            written.append(section(json.loads(file.read_text(encoding="utf-8"))))
    PAGE.write_text("\n".join(written), encoding="utf-8")


def measured(result: dict[str, Any]) -> str:
    """The section of a result whose figures are those of FIGURES, one value per repetition."""
    lines = [
        f"## {result['name'].capitalize()}",
        "",
        "| figure | median | repetitions | bar | what |",
        "|---|---:|---|---|---|",
    ]
    for name, values in result["figures"].items():
        what, bar = FIGURES.get(name, ("", ""))
        repetitions = ", ".join(f"{value:.3g}" for value in values)
        lines.append(f"| `{name}` | {statistics.median(values):.3g} | {repetitions} | {bar} | {what} |")
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
    """The section on what it costs to run Sextet at all."""
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


def _provenance(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"`{result['command']}`, commit {machine['commit']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory']}, {machine['system']}, {machine['versions']}. {result.get('remark', '')}"
    ).rstrip()
