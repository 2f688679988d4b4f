"""Page: a result as one HTML file that needs nothing else, and its plots as PNG files beside it."""

from html import escape
from pathlib import Path

from benchmarks.figures.plots import plots, svg, write_png
from benchmarks.figures.result import Result
from benchmarks.figures.table import table

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
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(result.name)}</title>
<style>{STYLE}</style>
<h1>{escape(result.name)}</h1>
<p class="sub">{escape(result.machine["cpu"])}, {escape(result.machine["cores"])} cores</p>
{warnings}
{figures}
<h2>Measurements</h2>
<pre>{escape(table(result))}</pre>
<h2>Load</h2>
<dl>{load}</dl>
<h2>Machine and command</h2>
<dl>{listed}</dl>
</html>
"""
