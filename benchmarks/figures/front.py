"""Front: the table and the plot of README's first page, between its markers, made from the result files.

A page keeps what it has where the result files do not hold a table's figures yet.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures.result import RESULTS, ROOT

PLOT = ROOT / "docs" / "throughput.png"
MOST_OTHERS = 3
ENCODERS, GENERATION = "encoders", "generation"
OPEN_LOOP = "open loop"
"""In the names of the measurements that the plot shows."""


@dataclass(frozen=True)
class Words:
    """The words of a page's table and plot; `rows` name workloads by the beginning of their names."""

    head: tuple[str, str, str]
    rows: Mapping[str, str]
    caption: str
    plotted: str


PAGES = {
    "README.md": Words(
        ("per second, same weights", "Sextet", "others"),
        {
            "bert-base 128": "BERT-base shape, int8, 128 tokens: texts",
            "minilm-l6 mixed": "MiniLM-L6 shape, int8, mixed lengths: texts",
            "SmolLM2, one stream, prompts of 64": "SmolLM2-135M, one stream: tokens",
            "SmolLM2, 16 at once, prompts of 512": "SmolLM2-135M, 16 streams, prompts of 512 tokens: tokens",
            "Qwen2-0.5B shape, one stream": "Qwen2-0.5B shape, one stream: tokens",
            "SmolLM2, open loop": "SmolLM2-135M, mixed lengths, TTFT 1 s and 100 ms a token: requests",
            "translation, 16 at once, greedy": "translation, 16 clients, greedy: sentences",
        },
        "Medians of `make bench-encoders` ({encoders}) and `make bench-generation` ({generation}): {machine}. Each "
        "server has its own best artifact and settings, and was alone on the machine. Sextet answers over HTTP.",
        "Throughput and time to first token, open loop",
    ),
    "README.ko.md": Words(
        ("초당 처리량(같은 가중치)", "Sextet", "다른 서버"),
        {
            "bert-base 128": "BERT-base 크기, int8, 128토큰: 텍스트",
            "minilm-l6 mixed": "MiniLM-L6 크기, int8, 길이가 섞인 텍스트: 텍스트",
            "SmolLM2, one stream, prompts of 64": "SmolLM2-135M, 스트림 1개: 토큰",
            "SmolLM2, 16 at once, prompts of 512": "SmolLM2-135M, 스트림 16개, 프롬프트 512토큰: 토큰",
            "Qwen2-0.5B shape, one stream": "Qwen2-0.5B 크기, 스트림 1개: 토큰",
            "SmolLM2, open loop": "SmolLM2-135M, 섞인 길이, TTFT 1초와 토큰당 100 ms: 요청",
            "translation, 16 at once, greedy": "번역, 클라이언트 16개, 그리디: 문장",
        },
        "`make bench-encoders`({encoders})와 `make bench-generation`({generation})의 중앙값: {machine}. 각 서버는 "
        "자신에게 가장 좋은 모델 파일과 설정으로, 기계에서 혼자 실행되었습니다. Sextet은 HTTP로 답했습니다.",
        "처리량과 첫 토큰까지의 시간, open loop",
    ),
}
BEGINS, ENDS = "<!-- measured -->\n", "<!-- /measured -->"


def write_front() -> None:
    """Rewrite the marked part of both pages, and the plot, where both result files have what they show."""
    results = {name: _read(RESULTS / f"{name}.json") for name in (ENCODERS, GENERATION)}
    rates = medians([entry for result in results.values() for entry in result.get("peers", [])])
    points = [one for one in results[GENERATION].get("raw", []) if OPEN_LOOP in one["measurement"]]
    words = next(iter(PAGES.values()))
    if not points or not all(_row(rates, name) for name in words.rows):
        return
    from benchmarks.figures.plots import open_loops, write_png  # imports matplotlib

    write_png(open_loops(points), PLOT)
    commits = {name: result["machine"]["commit"] for name, result in results.items()}
    machine = results[GENERATION]["machine"]
    shown = f"{machine['cpu']}, {machine['cores']} cores"
    for page, words in PAGES.items():
        caption = words.caption.format(**commits, machine=shown)
        content = "\n".join(
            [*table(words, rates), "", caption, "", f"![{words.plotted}]({PLOT.relative_to(ROOT)})", ""]
        )
        file = ROOT / page
        text = file.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGINS)
        _, _, after = rest.partition(ENDS)
        file.write_text(f"{before}{BEGINS}{content}{ENDS}{after}", encoding="utf-8")


def medians(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The median rate of each server, by workload."""
    rates: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry["inputs_per_s"]:
            rates.setdefault(entry["workload"], {})[entry["peer"]] = median(entry["inputs_per_s"])
    return rates


def table(words: Words, rates: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Our rate beside those of the fastest others, for each workload of `words`."""
    lines = [f"| {' | '.join(words.head)} |", "|---|---:|---|"]
    for beginning, label in words.rows.items():
        row = _row(rates, beginning)
        others = sorted((one for one in row if not one.startswith("Sextet")), key=lambda one: -row[one])[:MOST_OTHERS]
        shown = ", ".join(f"{one} {_number(row[one])}" for one in others)
        lines.append(f"| {label} | {_number(row['Sextet'])} | {shown} |")
    return lines


def _row(rates: Mapping[str, Mapping[str, float]], beginning: str) -> Mapping[str, float]:
    """The rates of the first workload whose name begins so, if ours is among them."""
    return next((row for name, row in rates.items() if name.startswith(beginning) and "Sextet" in row), {})


def _number(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content
