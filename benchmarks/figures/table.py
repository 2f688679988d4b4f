"""Table: a result for people, in the terminal."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.figures.result import Result

_LATENCIES = ("p50", "p90", "p99", "max")


def table(result: Result) -> str:
    """One line per measured window, the figures over all repetitions, and what should make one doubt them."""
    rows = [["load", "requests/s", "inputs/s", *(f"{name} ms" for name in _LATENCIES), "queue", "infer", "errors"]]
    rows += [_row(point) for point in result.points]
    lines = [_aligned(rows), ""]
    lines += [_aligned([["figure", "median", "of"], *(_figure(*item) for item in result.figures.items())])]
    streams = [point for point in result.points if "ttft_ms" in point]
    if streams:
        heads = [["stream", "ttft p50 ms", "ttft p99 ms", "itl p50 ms", "itl p99 ms", "tokens/s"]]
        lines += ["", _aligned([*heads, *(_stream_row(point) for point in streams)])]
    lines += [f"warning: {one}" for one in result.warnings]
    return "\n".join(lines)


def _row(point: dict[str, Any]) -> list[str]:
    latency, parts = point["latency_ms"], point.get("parts_ms", {})
    errors = ", ".join(f"{count} x {status}" for status, count in point["errors"].items())
    stopped = point.get("stopped_early", False)
    return [
        point["label"] + (" (stopped)" if stopped else ""),
        *("-" if stopped else f"{point[name]:.1f}" for name in ("requests_per_s", "inputs_per_s")),
        *(f"{latency[name]:.2f}" if latency else "-" for name in _LATENCIES),
        *(f"{parts[part]['mean']:.2f}" if parts else "-" for part in ("queue", "inference")),
        errors or "0",
    ]


def _stream_row(point: dict[str, Any]) -> list[str]:
    durations = [point[name].get(percentile) for name in ("ttft_ms", "itl_ms") for percentile in ("p50", "p99")]
    shown = ["-" if one is None else f"{one:.2f}" for one in durations]
    return [point["label"], *shown, f"{point['streamed_tokens_per_s']:.1f}"]


def _figure(name: str, values: Sequence[float]) -> list[str]:
    return [name, f"{median(values):.4g}", " ".join(f"{one:.4g}" for one in values)]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
