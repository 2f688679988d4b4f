"""Scenarios, with MLPerf's names: the load that each one sends, and the figures that it reports.

    single-stream   one request at a time: latency
    offline         as fast as it goes: throughput
    server          Poisson arrivals: the highest rate whose p99 latency meets the objective
    sweep           a list of concurrencies or rates: a curve
    soak            one constant rate: errors, and the memory of the replicas

Each runs `repetitions` times. Where the raw pipeline is measured too, it runs in turn with the server, so that both see
the same state of the machine. The spread of the repetitions is the noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import Say
from benchmarks.load.generator import Load, measure
from benchmarks.load.objective import BAD_SHARE
from benchmarks.load.tally import Tally
from benchmarks.raw import RawPipeline
from benchmarks.replicas import MemoryWatch
from benchmarks.search import Trial, highest_rate
from pipelines.errors import ConfigurationError

OFFLINE_CONCURRENCY = 64
SEARCH_HEADROOM = 1.1  # times the rate of the closed loop, which may have been measured in a slow moment
MAX_TRIAL_S = 60.0  # of a trial that needs longer than the duration for its requests


@dataclass(frozen=True)
class ScenarioConfig:
    """How a scenario runs. It sets the concurrency or the rate of `load` itself.

    A trial of Server has at least `trial_requests`, as fewer have no meaningful p99, and lasts MAX_TRIAL_S at most.
    """

    load: Load
    concurrencies: Sequence[int] = ()
    rates: Sequence[float] = ()
    raw_batch_size: int | None = None  # None: search the best one
    trial_requests: int = 200
    resolution: float = 0.03  # of the rate that Server searches
    repetitions: int = 3
    processes: int | None = None
    task: str | None = None  # whose replicas a soak watches; None: all
    server_pid: int | None = None


@dataclass
class Outcome:
    """`figures` have one value per repetition under each name; `points` are the `Tally.summary` of each measurement."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)

    def note(self, **figures: float) -> None:
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)


def bottlenecks(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loads whose generator may have been the limit instead of the server, each with the reason."""
    named = {point["label"]: point["generator"]["bottleneck"] for point in points if point["generator"]["bottleneck"]}
    return [f"{label}: {reason}" for label, reason in named.items()]


def single_stream(config: ScenarioConfig, raw: RawPipeline | None, say: Say) -> Outcome:
    outcome = Outcome()
    for repetition in range(config.repetitions):
        tally = _closed(config, outcome, 1, repetition, say)
        p50_ms = tally.latency.percentile_ms(50)
        outcome.note(p50_ms=p50_ms, p99_ms=tally.latency.percentile_ms(99))
        if raw is not None:
            run = raw.run(1, config.load.duration_s)
            outcome.raw.append(run.figures())
            outcome.note(raw_p50_ms=run.batch_ms["p50"], added_p50_ms=p50_ms - run.batch_ms["p50"])
    return outcome


def offline(config: ScenarioConfig, raw: RawPipeline | None, say: Say) -> Outcome:
    outcome = Outcome()
    (concurrency,) = config.concurrencies or (OFFLINE_CONCURRENCY,)
    batch_size = _best_batch_size(config, raw, say)
    for repetition in range(config.repetitions):
        raw_per_s = None
        if raw is not None:
            run = raw.run(batch_size, config.load.duration_s)
            outcome.raw.append(run.figures())
            raw_per_s = run.inputs_per_s
        tally = _closed(config, outcome, concurrency, repetition, say)
        served_per_s = tally.per_s["inputs"]
        outcome.note(inputs_per_s=served_per_s)
        if raw_per_s is not None:
            outcome.note(raw_inputs_per_s=raw_per_s, served_over_raw=served_per_s / raw_per_s)
    return outcome


def server(config: ScenarioConfig, raw: RawPipeline | None, say: Say) -> Outcome:
    """Raises ConfigurationError without an objective."""
    if config.load.slo_s is None:
        raise ConfigurationError("server searches the highest rate that meets an objective: give --slo-ms")
    outcome = Outcome()
    batch_size = _best_batch_size(config, raw, say)
    for repetition in range(config.repetitions):
        closed = _closed(config, outcome, OFFLINE_CONCURRENCY, repetition, say)
        upper_per_s = SEARCH_HEADROOM * closed.per_s["requests"]

        def attempt(rate_per_s: float, repetition: int = repetition) -> Trial:
            duration_s = max(config.load.duration_s, min(config.trial_requests / rate_per_s, MAX_TRIAL_S))
            trying = replace(config, load=replace(config.load, duration_s=duration_s))
            tally = _open(trying, outcome, rate_per_s, repetition, say, hopeless_stops=True)
            return Trial(rate_per_s, not tally.stopped_early and tally.bad <= BAD_SHARE * tally.requests)

        rate_per_s, _ = highest_rate(attempt, upper_per_s, config.resolution)
        outcome.note(rate_per_s=rate_per_s)
        if raw is not None:
            run = raw.run(batch_size, config.load.duration_s)
            outcome.raw.append(run.figures())
            n_inputs = config.load.calls[0].n_inputs
            outcome.note(raw_inputs_per_s=run.inputs_per_s, rate_over_raw=rate_per_s * n_inputs / run.inputs_per_s)
    return outcome


def sweep(config: ScenarioConfig, raw: RawPipeline | None, say: Say) -> Outcome:
    """Raises ConfigurationError without a list of concurrencies or rates."""
    if not config.concurrencies and not config.rates:
        raise ConfigurationError("sweep takes a list: --concurrency 1,2,4,8 or --rate 10,20,40")
    outcome = Outcome()
    for repetition in range(config.repetitions):
        for concurrency in config.concurrencies:
            tally = _closed(config, outcome, concurrency, repetition, say)
            outcome.note(**{f"c={concurrency} inputs_per_s": tally.per_s["inputs"]})
            outcome.note(**{f"c={concurrency} p99_ms": tally.latency.percentile_ms(99)})
        for rate_per_s in config.rates:
            tally = _open(config, outcome, rate_per_s, repetition, say)
            outcome.note(**{f"{rate_per_s:g}/s p99_ms": tally.latency.percentile_ms(99)})
    return outcome


def soak(config: ScenarioConfig, raw: RawPipeline | None, say: Say) -> Outcome:
    """One repetition: it is long. Raises ConfigurationError without a rate."""
    if len(config.rates) != 1:
        raise ConfigurationError("soak holds one rate: give --rate")
    outcome = Outcome()
    watch = MemoryWatch(config.task, config.server_pid)
    watch.start()
    try:
        tally = _open(config, outcome, config.rates[0], 0, say)
    finally:
        watch.stop()
    outcome.memory = watch.to_json()
    outcome.note(p99_ms=tally.latency.percentile_ms(99), error_share=1 - tally.statuses["200"] / max(1, tally.requests))
    growth = watch.growth(config.load.warm_up_s)
    if growth is None:
        say("no replica was seen on this machine from the beginning to the end: its memory was not measured")
    else:
        outcome.note(memory_growth=growth)
    return outcome


SCENARIOS: dict[str, Callable[[ScenarioConfig, RawPipeline | None, Say], Outcome]] = {
    "single-stream": single_stream,
    "offline": offline,
    "server": server,
    "sweep": sweep,
    "soak": soak,
}


def _best_batch_size(config: ScenarioConfig, raw: RawPipeline | None, say: Say) -> int:
    if raw is None or config.raw_batch_size is not None:
        return config.raw_batch_size or 1
    best = raw.best_offline(config.load.duration_s)
    say(f"raw: the best fixed batch size is {best.batch_size} ({best.inputs_per_s:.1f} inputs/s)")
    return best.batch_size


def _closed(config: ScenarioConfig, outcome: Outcome, concurrency: int, repetition: int, say: Say) -> Tally:
    load = replace(config.load, concurrency=concurrency)
    return _measured(config, outcome, load, f"c={concurrency}", repetition, say)


def _open(
    config: ScenarioConfig,
    outcome: Outcome,
    rate_per_s: float,
    repetition: int,
    say: Say,
    *,
    hopeless_stops: bool = False,
) -> Tally:
    load = replace(
        config.load, rate_per_s=rate_per_s, seed=config.load.seed + repetition, hopeless_stops=hopeless_stops
    )
    return _measured(config, outcome, load, f"{rate_per_s:.4g}/s", repetition, say)


def _measured(config: ScenarioConfig, outcome: Outcome, load: Load, label: str, repetition: int, say: Say) -> Tally:
    tally = measure(load, config.processes)
    asked = {"concurrency": load.concurrency, "rate_per_s": load.rate_per_s}
    outcome.points.append({"label": label, "repetition": repetition, **asked, **tally.summary()})
    ending = ", stopped: it cannot meet the objective" if tally.stopped_early else ""
    errors = tally.requests - tally.statuses["200"]
    say(
        f"{label}: {tally.per_s['requests']:.1f} requests/s, p50 {tally.latency.percentile_ms(50):.1f} ms, "
        f"p99 {tally.latency.percentile_ms(99):.1f} ms{f', {errors} errors' if errors else ''}{ending}"
    )
    return tally
