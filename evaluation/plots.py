"""Plots: learning curves of a training, and confusion matrices of a classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_LARGEST = 40  # labels; the counts of more are too small to read


def learning_curve(history: Sequence[Mapping[str, Any]], shown: Sequence[str], title: str, path: Path) -> None:
    """A PNG of a Trainer's `log_history`: losses over steps, and under them the scores named in `shown`."""
    losses = {"training": [(one["step"], one["loss"]) for one in history if "loss" in one]}
    scores: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            label = name.removeprefix("eval_").removeprefix("validation_")
            if name.startswith("eval_") and name.endswith("_loss"):
                where = "validation" if label == "loss" else f"validation {label.removesuffix('_loss')}"
                losses.setdefault(where, []).append((entry["step"], value))
            elif name.startswith("eval_") and any(name.endswith(f"_{one}") for one in shown):
                scores.setdefault(label.replace("_", " "), []).append((entry["step"], value))
    figure = _figure(7, 6.5 if scores else 3.6)
    axes = [figure.add_subplot(2 if scores else 1, 1, 1)]
    axes[0].set(title=title, ylabel="loss")
    _curves(axes[0], losses)
    if scores:
        axes.append(figure.add_subplot(2, 1, 2, sharex=axes[0]))
        axes[1].set(ylabel="score")
        _curves(axes[1], scores)
    axes[-1].set(xlabel="step")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def confusion(counts: np.ndarray, labels: Sequence[str], title: str, path: Path) -> None:
    """A PNG of counts (right label, answer), shaded by the share of each right label."""
    n = len(labels)
    figure = _figure(*([max(4.0, min(14.0, 2.2 + 0.75 * n))] * 2))
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in labels]
    axes.set_xticks(range(n), names, rotation=45 if n > 2 else 0, ha="right" if n > 2 else "center")
    axes.set_yticks(range(n), names)
    axes.set(xlabel="answer", ylabel="right label", title=title)
    if n <= _LARGEST:
        for row, column in np.ndindex(counts.shape):
            if counts[row, column] or n <= 12:
                dark = share[row, column] > 0.5
                text = str(int(counts[row, column]))
                axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _figure(width: float, height: float) -> Any:
    """A figure without pyplot, which needs a display, in the first installed font with Hangul."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    wanted = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "AppleGothic", "UnDotum")
    families = [name for name in wanted if name in known]
    matplotlib.rcParams["font.family"] = [*families, "DejaVu Sans"]
    return Figure(figsize=(width, height), layout="constrained")


def _curves(axes: Any, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for name, points in curves.items():
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker="o" if len(points) <= 40 else None, markersize=3, label=name)
    axes.grid(alpha=0.3)
    axes.legend()
