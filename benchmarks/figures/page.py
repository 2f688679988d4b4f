"""Page: a result for people, as a table in the terminal and as one HTML file with its plots as PNG files beside it."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures.plots import plots, svg, write_png
from benchmarks.figures.result import Result

_LATENCIES = ("p50", "p90", "p99", "max")


def table(result: Result) -> str:
    """One line per measured window, the figures with all repetitions, and the warnings."""
    rows = [["load", "requests/s", "inputs/s", *(f"{name} ms" for name in _LATENCIES), "queue", "infer", "errors"]]
    rows += [_row(point) for point in result.points]
    lines = [aligned(rows), ""]
    lines += [aligned([["figure", "median", "of"], *(_figure(*item) for item in result.figures.items())])]
    streams = [point for point in result.points if "ttft_ms" in point]
    if streams:
        heads = [["stream", "ttft p50 ms", "ttft p99 ms", "itl p50 ms", "itl p99 ms", "tokens/s"]]
        lines += ["", aligned([*heads, *(_stream_row(point) for point in streams)])]
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


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.sub { color: #555; margin-top: .2rem; }
pre { background: #f6f6f6; padding: .8rem 1rem; overflow-x: auto; font-size: 13px; line-height: 1.4; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: 14px; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; } .warning { background: #fff3d6; padding: .6rem 1rem; }
"""


def write_page(result: Result, path: Path) -> Path:
    """Write `path` and, beside it, NAME-PLOT.png for each plot; returns `path`."""
    figures = []
    for name, figure in plots(result):
        write_png(figure, path.with_name(f"{path.stem}-{name}.png"))
        figures.append(f"<figure>{svg(figure)}</figure>")
    path.write_text(_page(result, "\n".join(figures)), encoding="utf-8")
    return path


def _page(result: Result, figures: str) -> str:
    warned = "<br>".join(map(escape, result.warnings))
    warnings = f'<p class="warning">{warned}</p>' if warned else ""
    facts = {"command": result.command, "measured": result.written_at, **result.machine}
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    load = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in result.load.items()
        if value not in (None, "", False)
    )
    below = f"{result.machine['cpu']}, {result.machine['cores']} cores"
    body = f"""{warnings}
{figures}
<h2>Measurements</h2>
<pre>{escape(table(result))}</pre>
<h2>Load</h2>
<dl>{load}</dl>
<h2>Machine and command</h2>
<dl>{listed}</dl>"""
    return framed(result.name, below, body)


def framed(title: str, below: str, body: str) -> str:
    """A whole page; `below` stands under its title, `body` is HTML."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<h1>{escape(title)}</h1>
<p class="sub">{escape(below)}</p>
{body}
</html>
"""
