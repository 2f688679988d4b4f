"""Plots of a result, as SVG for the page and as PNG beside it."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.figures.result import Result
from benchmarks.load.tally import Histogram

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

WIDTH_INCHES, HEIGHT_INCHES = 7.2, 3.8
PNG_DPI = 120
PERCENTILES = np.concatenate([np.linspace(0, 99, 199), np.linspace(99, 100, 51)])
MAX_CURVES = 8  # more lines in one plot cannot be told apart
MAX_BARS = 12
LEVEL_MS = 1000  # the service level of a first token
PART_COLOURS = {"queue": "#d95f02", "tokenization": "#7570b3", "inference": "#1b9e77", "other": "#bdbdbd"}
STYLE: Any = {  # matplotlib types its keys one by one
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sextet",
}


def plots(result: Result) -> Iterator[tuple[str, Figure]]:
    """(name, figure) for each plot that the result has data for. Write each figure before taking the next."""
    with pyplot.rc_context(STYLE):
        whole = (point for point in result.points if point["latency_ms"] and not point.get("stopped_early"))
        measured = sorted(whole, key=lambda point: point["rate_per_s"] or 0)
        if measured:
            yield "latency_cdf", _latency_cdf(measured)
        if len({point["label"] for point in measured}) > 1:
            yield "throughput_latency", _throughput_latency(measured, result.load.get("slo_ms"))
        if parts := [point for point in measured if "parts_ms" in point]:
            yield "time_split", _time_split(parts)
        if result.memory:
            yield "memory", _memory(result.memory)


def open_loops(points: Sequence[dict[str, Any]]) -> Figure:
    """Of each server that generates: tokens per second over the wait for the first token, rate by rate."""
    with pyplot.rc_context(STYLE):
        figure, axes = _figure()
        for colour, server in enumerate(dict.fromkeys(point["server"] for point in points)):
            own = sorted((one for one in points if one["server"] == server), key=lambda one: one["rate_per_s"])
            waits, rates = [one["first_token_ms"] for one in own], [one["tokens_per_s"] for one in own]
            axes.plot(waits, rates, "o", color=f"C{colour}", label=server, markersize=5)
        axes.axvline(LEVEL_MS, color="#999999", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel="time to first token, p90, ms", ylabel="tokens answered per second")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(Plain())
        axes.xaxis.set_minor_formatter(Plain(minor_thresholds=(1.2, 0.4)))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        axes.set_title("SmolLM2-135M, mixed lengths, Poisson arrivals", loc="left")
        return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG element for a page, without prologue and metadata."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def write_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=PNG_DPI)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    return figure, figure.add_subplot()


def _latency_cdf(points: Sequence[dict[str, Any]]) -> Figure:
    """One line per load, its repetitions together."""
    merged = _merged(points)
    if len(merged) > MAX_CURVES:
        keep = np.linspace(0, len(merged) - 1, MAX_CURVES).round().astype(int)
        merged = [merged[index] for index in keep]
    figure, axes = _figure()
    for label, histogram in merged:
        axes.step(histogram.distribution(PERCENTILES.tolist()), PERCENTILES, where="post", label=label)
    axes.axhline(99, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="latency, ms", ylabel="requests answered within, %", ylim=(0, 101))
    axes.xaxis.set_major_formatter(Plain())
    axes.xaxis.set_minor_formatter(Plain(minor_thresholds=(1.2, 0.4)))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("Latency from the intended send time", loc="left")
    return figure


def _throughput_latency(points: Sequence[dict[str, Any]], slo_ms: float | None) -> Figure:
    """Medians of the repetitions of each load, in the order of the throughput."""
    labels = dict.fromkeys(point["label"] for point in points)
    curve = []
    for label in labels:
        same = [point for point in points if point["label"] == label]
        curve.append(
            (
                float(np.median([point["inputs_per_s"] for point in same])),
                *(float(np.median([point["latency_ms"][name] for point in same])) for name in ("p50", "p99")),
                label,
                same[0]["rate_per_s"] is None,
            )
        )
    figure, axes = _figure()
    closed = [one[:4] for one in curve if one[4]]
    opened = sorted(one[:4] for one in curve if not one[4])
    for group, kind, marker, colour in ((closed, "closed loop", "o", "C0"), (opened, "Poisson arrivals", "s", "C3")):
        if group:
            rates, p50, p99, _ = zip(*group, strict=True)
            axes.plot(rates, p99, f"{marker}-", color=colour, label=f"p99, {kind}", markersize=4)
            axes.plot(rates, p50, f"{marker}:", color=colour, label=f"p50, {kind}", markersize=4)
    for rate, _, p99_ms, label in closed:
        axes.annotate(label, (rate, p99_ms), textcoords="offset points", xytext=(4, 4), fontsize=8)
    if slo_ms is not None:
        axes.axhline(slo_ms, color="#999999", linewidth=0.8, linestyle=":")
        axes.annotate("objective", (0, slo_ms), textcoords="offset points", xytext=(4, 3), fontsize=8)
    axes.set(yscale="log", xlabel="inputs answered per second", ylabel="latency, ms")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(minor_thresholds=(1.2, 0.4)))
    axes.legend(loc="best")
    axes.set_title("Throughput and latency", loc="left")
    return figure


def _time_split(points: Sequence[dict[str, Any]]) -> Figure:
    """Mean milliseconds of a request in each part; `other` is HTTP, ingress, postprocessing and the client."""
    labels = list(dict.fromkeys(point["label"] for point in points))[-MAX_BARS:]
    figure, axes = _figure()
    for row, label in enumerate(reversed(labels)):
        same = [point for point in points if point["label"] == label]
        means = {
            part: float(np.mean([point["parts_ms"][part]["mean"] for point in same]))
            for part in ("queue", "tokenization", "inference")
        }
        latency_ms = float(np.mean([point["latency_ms"]["mean"] for point in same]))
        means["other"] = max(0.0, latency_ms - sum(means.values()))
        left = 0.0
        for part, width in means.items():
            axes.barh(row, width, left=left, color=PART_COLOURS[part], label=part if row == 0 else None, height=0.6)
            left += width
    axes.set_yticks(range(len(labels)), list(reversed(labels)))
    axes.set(xlabel="mean milliseconds of a request")
    axes.grid(axis="y", visible=False)
    axes.legend(ncols=4, loc="upper left", bbox_to_anchor=(0, -0.16))
    axes.set_title("Where the time goes", loc="left")
    return figure


def _memory(replicas: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = _figure()
    for replica in replicas:
        axes.plot(replica["at_s"], replica["resident_mib"], label=f"replica {replica['process']}")
    axes.set(xlabel="seconds", ylabel="resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    axes.set_title("Memory of the replicas", loc="left")
    return figure


def _merged(points: Sequence[dict[str, Any]]) -> list[tuple[str, Histogram]]:
    merged: dict[str, Histogram] = {}
    for point in points:
        merged.setdefault(point["label"], Histogram()).add(Histogram.decode(point["latency_histogram"]))
    return list(merged.items())


class Plain(LogFormatter):
    """Writes ticks of a logarithmic axis as plain numbers, also between the powers of ten."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return f"{value:g}" if super().__call__(value, position) else ""
