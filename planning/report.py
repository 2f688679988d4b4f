"""Report: plans as a table for people, and as one line of JSON."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.figures.page import aligned
from planning.search import Plan, best
from planning.simulated.fleet import Outcome

QUANTILES = (0.5, 0.9, 0.99)
HEADS = (
    "policy", "machines", "replicas", "most", "machine hours", "within", "worst hour", "p50 ms", "p90 ms", "p99 ms",
    "refused", "expired", "price", "level",
)  # fmt: skip


def table(plans: Sequence[Plan]) -> str:
    """A line for each plan; the cheapest that holds the level is marked."""
    chosen = best(plans)
    return aligned([HEADS, *(_row(plan, plan is chosen) for plan in plans)])


def _row(plan: Plan, is_best: bool) -> list[str]:
    played, price = plan.played, plan.price
    return [
        played.policy,
        plan.kind.name,
        f"{played.replica_s / played.trace.duration_s:.2f}",
        f"{played.most_replicas:,}",
        f"{played.machine_s / 3600:,.1f}",
        f"{played.within(plan.level.slo_s):.2%}",
        f"{played.worst_hour(plan.level.slo_s):.2%}",
        *(_ms(played.quantile_s(one)) for one in QUANTILES),
        f"{played.count(Outcome.REFUSED):,}",
        f"{played.count(Outcome.EXPIRED):,}",
        "-" if price is None else f"{price:,.2f}",
        ("held, cheapest" if is_best else "held") if plan.holds else "missed",
    ]


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1000 * seconds:,.1f}"


def summary(plans: Sequence[Plan]) -> dict[str, Any]:
    """What the last line says: of each plan its figures, and the place of the cheapest that holds the level."""
    chosen, first = best(plans), plans[0]
    trace = first.played.trace
    return {
        "trace": trace.name,
        "requests": len(trace),
        "duration_s": round(trace.duration_s, 3),
        "slo_ms": 1000 * first.level.slo_s,
        "quantile": first.level.quantile,
        "best": None if chosen is None else next(at for at, plan in enumerate(plans) if plan is chosen),
        "plans": [_figures(plan) for plan in plans],
    }


def _figures(plan: Plan) -> dict[str, Any]:
    played = plan.played
    latencies = {f"p{100 * one:g}_ms": _number(1000 * played.quantile_s(one)) for one in QUANTILES}
    return {
        "policy": played.policy,
        "machines": plan.kind.name,
        "held": plan.holds,
        "within": _number(played.within(plan.level.slo_s)),
        "within_worst_hour": _number(played.worst_hour(plan.level.slo_s)),
        **latencies,
        "answered": played.count(Outcome.ANSWERED),
        "refused": played.count(Outcome.REFUSED),
        "expired": played.count(Outcome.EXPIRED),
        "unanswered": played.count(Outcome.UNDER_WAY),
        "replica_seconds": _number(played.replica_s),
        "most_replicas": played.most_replicas,
        "machine_hours": _number(played.machine_s / 3600),
        "most_machines": played.most_machines,
        "price": None if plan.price is None else _number(plan.price),
        "simulated_in_s": _number(played.took_s),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(f"{value:.6g}")
