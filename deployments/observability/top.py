"""Top: tasks, replicas, rates, queues and slots in the terminal, from what a node hands out (`sextet top`)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deployments.ask import AskError, text_at
from deployments.observability.statistics import quantile

OK = "200"
COLUMNS = ("task", "model", "replicas", "requests/s", "failed", "p50", "p99", "waiting", "work", "slots", "tokens/s")


@dataclass
class Snapshot:
    """The numbers of each model, (task, model), at one moment, summed over its replicas."""

    at: float
    sums: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    buckets: dict[tuple[str, str], dict[float, float]] = field(default_factory=dict)
    """Requests up to so many seconds."""

    @classmethod
    def of(cls, text: str, at: float) -> "Snapshot":
        found = cls(at)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "task" in sample.labels:
                    model = sample.labels["task"], sample.labels["model"]
                    found._add(model, sample.name, sample.labels, sample.value)
        return found

    def _add(self, model: tuple[str, str], name: str, labels: dict[str, str], value: float) -> None:
        sums = self.sums.setdefault(model, {})
        if name == "sextet_request_seconds_bucket":
            buckets = self.buckets.setdefault(model, {})
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
            return
        if name == "sextet_requests_total" and labels["status"] >= "500":
            sums["failed"] = sums.get("failed", 0.0) + value
        sums[name] = max(sums.get(name, 0.0), value) if name == "sextet_work_seconds" else sums.get(name, 0.0) + value


def rows(before: Snapshot, after: Snapshot) -> Iterator[tuple[str, ...]]:
    """A line for each model that is loaded, as COLUMNS names them; rates and times are of what happened in between."""
    elapsed_s = max(1e-9, after.at - before.at)
    for model, now in after.sums.items():
        if not now.get("sextet_artifact_info"):
            continue
        past = before.sums.get(model, {})

        def grew(name: str, now: dict[str, float] = now, past: dict[str, float] = past) -> float:
            return max(0.0, now.get(name, 0.0) - past.get(name, 0.0))  # a replica may have ended

        buckets, earlier = after.buckets.get(model, {}), before.buckets.get(model, {})
        counts = [(bound, max(0.0, count - earlier.get(bound, 0.0))) for bound, count in sorted(buckets.items())]
        requests, slots = grew("sextet_requests_total"), now.get("sextet_slots")
        yield (
            *model,
            f"{now['sextet_artifact_info']:.0f}",
            f"{requests / elapsed_s:.1f}",
            f"{100 * grew('failed') / requests:.1f}%" if requests else "-",
            _milliseconds(quantile(counts, 0.5)),
            _milliseconds(quantile(counts, 0.99)),
            f"{now.get('sextet_queue_requests', 0.0):.0f}",
            f"{now.get('sextet_work_seconds', 0.0):.1f} s",
            f"{now.get('sextet_slots_taken', 0.0):.0f}/{slots:.0f}" if slots else "-",
            f"{(grew('sextet_tokens_total') + grew('sextet_generated_tokens_total')) / elapsed_s:,.0f}",
        )


def table(lines: Iterator[tuple[str, ...]]) -> Table:
    made = Table(*COLUMNS, box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(made.columns):
        column.justify = "left" if number < 2 else "right"
    for line in lines:
        made.add_row(*line)
    return made


def top(url: str, every_s: float, once: bool) -> None:
    """Show the table until Ctrl-C, or `once`; raises AskError where nothing is handed out at first."""
    before, console = Snapshot.of(text_at(url), time.monotonic()), Console()
    with Live(console=console, auto_refresh=False, screen=not once, transient=False) as live:
        while True:
            time.sleep(every_s)
            try:
                after = Snapshot.of(text_at(url), time.monotonic())
            except AskError as error:
                live.update(str(error), refresh=True)
                continue
            live.update(table(rows(before, after)), refresh=True)
            if once:
                return
            before = after


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
