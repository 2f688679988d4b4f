"""Figures: replicas, queue and latency over the trace, as PNG and in one self-contained page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from benchmarks.figures.page import framed
from benchmarks.figures.plots import STYLE, Plain, svg, write_png
from planning.report import table
from planning.search import Plan
from planning.simulated.simulation import Played

BINS = 144  # of a day: ten minutes
MAX_LINES = 8
WIDTH_INCHES, HEIGHT_INCHES = 9.0, 8.4
DAY_HOURS = 4.0  # between two ticks of a trace of a day


def figure(plans: Sequence[Plan]) -> Figure:
    """Requests, replicas, requests inside and latency over time, a line for each plan."""
    shown, trace, level = plans[:MAX_LINES], plans[0].played.trace, plans[0].level
    unit_s, unit = (3600.0, "hours") if trace.duration_s > 2 * 3600 else (60.0, "minutes")
    with pyplot.rc_context(STYLE):
        whole = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        rates, replicas, inside, latency = whole.subplots(4, 1, sharex=True, height_ratios=(2, 3, 2, 3))
        edges = np.linspace(0.0, trace.duration_s, BINS + 1) / unit_s
        rates.stairs(trace.rates(BINS), edges, color="#555555", fill=True, alpha=0.5)
        rates.set(ylabel="requests/s")
        rates.set_title(f"{trace.name}: {len(trace):,} requests", loc="left")
        for colour, plan in enumerate(shown):
            played, name = plan.played, _name(plan)
            at = np.asarray([point.at_s for point in played.series]) / unit_s
            style: Any = {"color": f"C{colour}", "linewidth": 1.3}
            replicas.step(at, [point.running for point in played.series], where="post", label=name, **style)
            inside.step(at, [point.inside for point in played.series], where="post", **style)
            quantiles_ms = 1000 * _over_time(played, level.quantile)
            latency.plot((edges[1:] + edges[:-1]) / 2, quantiles_ms, **style)
        latency.axhline(1000 * level.slo_s, color="#999999", linewidth=0.8, linestyle=":")
        latency.annotate(
            f"level: {1000 * level.slo_s:g} ms", (0, 1000 * level.slo_s), xytext=(4, 3), textcoords="offset points"
        )
        replicas.set(ylabel="replicas that run")
        inside.set(ylabel="requests inside, mean", yscale="symlog")
        latency.set(ylabel=f"p{100 * level.quantile:g} of the latency, ms", xlabel=unit, yscale="log")
        for axes in (rates, replicas, inside):
            axes.set_ylim(bottom=0)
        latency.set_xlim(0, edges[-1])
        latency.yaxis.set_major_formatter(Plain())
        latency.yaxis.set_minor_formatter(Plain(minor_thresholds=(1.2, 0.4)))
        whole.legend(loc="outside lower center", ncols=4)
        return whole


def write(plans: Sequence[Plan], output: Path) -> list[Path]:
    """OUTPUT.png and OUTPUT.html; returns both."""
    drawn = figure(plans)
    png, page = output.with_suffix(".png"), output.with_suffix(".html")
    png.parent.mkdir(parents=True, exist_ok=True)
    write_png(drawn, png)
    page.write_text(_page(plans, svg(drawn)), encoding="utf-8")
    return [png, page]


def _name(plan: Plan) -> str:
    return f"{plan.played.policy}, {plan.kind.name}"


def _over_time(played: Played, quantile: float) -> np.ndarray:
    """The quantile of the latencies of what arrived in each bin; NaN where nothing was answered."""
    trace = played.trace
    bins = np.minimum((trace.arrivals_s * BINS / trace.duration_s).astype(np.int64), BINS - 1)
    edges = np.searchsorted(bins, np.arange(BINS + 1))
    found = np.full(BINS, np.nan)
    for number in range(BINS):
        some = played.latencies_s[edges[number] : edges[number + 1]]
        some = some[~np.isnan(some)]
        if len(some):
            found[number] = np.quantile(some, quantile)
    return found


def _page(plans: Sequence[Plan], drawn: str) -> str:
    trace, level = plans[0].played.trace, plans[0].level
    asked = f"{level.quantile:.0%} of the requests within {1000 * level.slo_s:g} ms"
    return framed(trace.name, asked, f"<figure>{drawn}</figure>\n<pre>{escape(table(plans))}</pre>")
