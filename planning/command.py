"""`sextet plan`: how many replicas, on how many machines of which kind, hold a service level, at which cost."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import ConfigurationError
from pipelines.runtime.package import install_command


def plan(
    cluster: Annotated[Path, typer.Argument(help="A Ray Serve config file.")] = Path("cluster.yaml"),
    slo_ms: Annotated[float, typer.Option(help="The level: a request is answered within so many milliseconds.")] = 500,
    quantile: Annotated[float, typer.Option(help="The share of requests for which the level is to hold.")] = 0.9,
    trace: Annotated[
        str,
        typer.Option(
            help="A request log (.jsonl), a .csv with `time`, or constant:RATE, day:LOWEST-HIGHEST, burst:BASE-PEAK in "
            "requests/s."
        ),
    ] = "day:1-10",
    task: Annotated[str | None, typer.Option(help="Which model of the file: TASK or TASK.MODEL; its first.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="level, ray, configured, static or static:N; repeat it. The first, second and fourth."),
    ] = None,
    machines: Annotated[Path | None, typer.Option(help="A YAML file of kinds of machines; this one if absent.")] = None,
    costs: Annotated[
        Path | None, typer.Option(help="What batches cost: JSON. What was measured here if absent.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Of a named distribution: 24 for a day, else 1.")] = None,
    scale: Annotated[float, typer.Option(help="So many times the requests of the trace.")] = 1.0,
    tokens: Annotated[str, typer.Option(help="Where the trace has no sizes, as in `sextet bench`.")] = (
        "lognormal:24,200"
    ),
    written_tokens: Annotated[str, typer.Option(help="Of answers of models that write, where the trace has none.")] = (
        "lognormal:64,256"
    ),
    deadline_s: Annotated[float | None, typer.Option(help="Of requests for which the trace says none.")] = None,
    start_s: Annotated[float, typer.Option(help="From the decision to a replica that answers.")] = 8.0,
    overhead_ms: Annotated[
        float | None, typer.Option(help="Of a request beside queue and model; of a log as measured, else 2.")
    ] = None,
    least_replicas: Annotated[int | None, typer.Option(help="Instead of the file's min_replicas.")] = None,
    most_replicas: Annotated[int, typer.Option(help="Instead of the file's max_replicas.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of arrivals and sizes.")] = 0,
    pattern: Annotated[
        Path | None,
        typer.Option(help="Keep in this folder what a configured policy with `pattern` remembers of the days."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write OUTPUT.png and OUTPUT.html.")] = None,
) -> None:
    """Replay a day in simulated time, with the real scheduler and scaling: replicas, machines, latency and cost.

    Prints a table, and one line of JSON last.
    """
    try:
        from planning import plan as planned
        from planning.report import summary, table
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"sextet plan needs {error.name}: {install_command('serve,bench')}") from None

    asked = planned.Asked(
        cluster=cluster,
        slo_ms=slo_ms,
        quantile=quantile,
        trace=trace,
        task=task,
        policies=tuple(policy or planned.POLICIES),
        machines=machines,
        costs=costs,
        hours=hours,
        scale=scale,
        tokens=tokens,
        written_tokens=written_tokens,
        deadline_s=deadline_s,
        start_s=start_s,
        overhead_ms=overhead_ms,
        least_replicas=least_replicas,
        most_replicas=most_replicas,
        seed=seed,
        pattern=pattern,
    )
    plans = planned.plans(asked, _say)
    print(table(plans))
    if output is not None:
        from planning.figures import write

        _say(f"wrote {' and '.join(map(str, write(plans, output)))}")
    print(json.dumps(summary(plans)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
