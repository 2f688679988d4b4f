"""Top: tasks, replicas, rates, queues and slots in the terminal, from what nodes hand out (`sextet top`)."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from deployments.ask import AskError, text_at
from deployments.observability.statistics import outcome_of, quantile

COLUMNS = ("task", "model", "replicas", "requests/s", "failed", "p50", "p99", "waiting", "work", "slots", "tokens/s")
EXAMPLE = "http://127.0.0.1:9103/metrics"
Model = tuple[str, str]
"""Its task and its name, or that of an adapter."""


@dataclass
class Node:
    """The numbers of each model that one node hands out, summed over its replicas."""

    sums: dict[Model, dict[str, float]] = field(default_factory=dict)
    buckets: dict[Model, dict[float, float]] = field(default_factory=dict)
    """Requests up to so many seconds."""
    bases: dict[Model, Model] = field(default_factory=dict)
    """The base of each adapter, whose replicas, queue and slots it has."""

    @classmethod
    def of(cls, text: str) -> "Node":
        found = cls()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "task" in sample.labels:
                    found._add(sample.name, sample.labels, sample.value)
        return found

    def _add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        model = labels["task"], labels["model"]
        sums = self.sums.setdefault(model, {})
        if name == "sextet_request_seconds_bucket":
            buckets = self.buckets.setdefault(model, {})
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
            return
        if name == "sextet_adapter_info":
            self.bases[model] = labels["task"], labels["base"]
        if name == "sextet_requests_total" and outcome_of(labels["status"]) == "failed":
            sums["failed"] = sums.get("failed", 0.0) + value
        sums[name] = max(sums.get(name, 0.0), value) if name == "sextet_work_seconds" else sums.get(name, 0.0) + value


@dataclass
class Snapshot:
    """What the nodes that answered handed out at one moment, by address."""

    at: float
    nodes: dict[str, Node]

    @classmethod
    def of(cls, text: str, at: float) -> "Snapshot":
        """That of one node."""
        return cls(at, {"": Node.of(text)})

    def models(self) -> dict[Model, Model]:
        """Those that are loaded, each with itself; adapters with their bases, which they follow."""
        bases: dict[Model, Model] = {}
        for node in self.nodes.values():
            loaded = [model for model, sums in node.sums.items() if sums.get("sextet_artifact_info")]
            bases |= {model: model for model in loaded}
            bases |= {model: base for model, base in node.bases.items() if base in loaded}
        order = list(bases)
        return dict(sorted(bases.items(), key=lambda one: (order.index(one[1]), one[0] != one[1])))

    def now(self, model: Model, name: str) -> float:
        found = [node.sums.get(model, {}).get(name, 0.0) for node in self.nodes.values()]
        return max(found) if name == "sextet_work_seconds" else sum(found)


def rows(before: Snapshot, after: Snapshot) -> Iterator[tuple[str, ...]]:
    """A line for each model and adapter that is loaded, as COLUMNS names them; rates and times are of what happened in
    between, at the nodes that answered both times.
    """
    elapsed_s = max(1e-9, after.at - before.at)
    both = [(before.nodes[address], node) for address, node in after.nodes.items() if address in before.nodes]
    for model, base in after.models().items():

        def grew(name: str, model: Model = model) -> float:
            sums = [(past.sums.get(model, {}), now.sums.get(model, {})) for past, now in both]
            return sum(max(0.0, now.get(name, 0.0) - past.get(name, 0.0)) for past, now in sums)  # a replica may end

        counts: dict[float, float] = {}
        for past, now in both:
            earlier = past.buckets.get(model, {})
            for bound, count in now.buckets.get(model, {}).items():
                counts[bound] = counts.get(bound, 0.0) + max(0.0, count - earlier.get(bound, 0.0))
        p50, p99 = (_milliseconds(quantile(sorted(counts.items()), share)) for share in (0.5, 0.99))
        requests, slots = grew("sextet_requests_total"), after.now(base, "sextet_slots")
        yield (
            *model,
            f"{after.now(model, 'sextet_artifact_info' if model == base else 'sextet_adapter_info'):.0f}",
            f"{requests / elapsed_s:.1f}",
            f"{100 * grew('failed') / requests:.1f}%" if requests else "-",
            p50,
            p99,
            f"{after.now(base, 'sextet_queue_requests'):.0f}",
            f"{after.now(base, 'sextet_work_seconds'):.1f} s",
            f"{after.now(base, 'sextet_slots_taken'):.0f}/{slots:.0f}" if slots else "-",
            f"{(grew('sextet_tokens_total') + grew('sextet_generated_tokens_total')) / elapsed_s:,.0f}",
        )


def table(lines: Iterable[tuple[str, ...]]) -> Table:
    made = Table(*COLUMNS, box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(made.columns):
        column.justify = "left" if number < 2 else "right"
    for line in lines:
        made.add_row(*line)
    return made


def top(urls: Sequence[str], every_s: float, once: bool) -> None:
    """Show the table of some nodes until Ctrl-C, or `once`. A node that does not answer is named below it.

    Raises AskError where no node answers at first; with `once`, where none answers the second time.
    """
    before, silent = look(urls)
    if not before.nodes:
        raise AskError(silent[0])
    with Live(console=Console(), auto_refresh=False, screen=not once, transient=False) as live:
        while True:
            time.sleep(every_s)
            after, silent = look(urls)
            if once and not after.nodes:
                raise AskError(silent[0])
            live.update(Group(table(rows(before, after)), *silent), refresh=True)
            if once:
                return
            before = after


def look(urls: Sequence[str]) -> tuple[Snapshot, list[str]]:
    """What nodes hand out now, and why others do not; all are asked at once."""
    with ThreadPoolExecutor(len(urls)) as pool:
        found = dict(zip(urls, pool.map(_node, urls), strict=True))
    nodes = {url: one for url, one in found.items() if isinstance(one, Node)}
    return Snapshot(time.monotonic(), nodes), [str(one) for one in found.values() if isinstance(one, AskError)]


def _node(url: str) -> Node | AskError:
    try:
        return Node.of(text_at(url, option="--metrics"))
    except AskError as error:
        return error
    except ValueError as error:
        return AskError(f"{url} hands out no metrics ({error}); allowed: an address such as {EXAMPLE}")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
