"""`sextet models` and `sextet top`: what a running cluster serves, and how it is doing."""

import json
from typing import Annotated

import typer


def top(
    metrics: Annotated[
        list[str],
        typer.Option(
            help="What a node hands out; the start of `sextet serve` prints it. Again for each further node.",
            envvar="SEXTET_METRICS",
        ),
    ] = ["http://127.0.0.1:9103/metrics"],  # noqa: B006
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print and end.")] = False,
) -> None:
    """Show tasks, replicas, rates, times, queues and slots of running nodes, until Ctrl-C."""
    from deployments.observability.top import top as run

    run(tuple(dict.fromkeys(metrics)), every, once)


def models(
    url: Annotated[str, typer.Option(help="The ingress.", envvar="SEXTET_URL")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(help="A key, where it asks for one.", envvar="SEXTET_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")] = False,
) -> None:
    """List what a running cluster serves: models, versions, precisions, parity, memory, replicas and digests."""
    from deployments.served import served, table

    found = served(url, key)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        print(table(found))
