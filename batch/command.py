"""`sextet batch`: its options, and what it prints."""

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from batch.args import FORMATS, BatchArgs
from pipelines.errors import ConfigurationError
from pipelines.runtime.package import install_command
from pipelines.tasks import TASKS

PACKAGES = ("ray", "pyarrow", "pandas", "fsspec")  # of Ray Data


def batch(
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")],
    inputs: Annotated[
        list[str],
        typer.Option("--input", help="A file, a pattern, a URL such as s3://... or a Hub data set; repeat it."),
    ],
    output: Annotated[
        str, typer.Option(help=f"A file or URL that ends in {', '.join(FORMATS)}; with a * in it, a file per part.")
    ],
    model: Annotated[
        str | None, typer.Option(help="An artifact: folder, user/name@revision, URL; with --url a model's name there.")
    ] = None,
    parameters: Annotated[str, typer.Option(help="A JSON object: the task's parameters, for every row.")] = "{}",
    column: Annotated[
        list[str] | None, typer.Option(help="FIELD=COLUMN, by name, or by number from 0 where there is no header.")
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A column to copy beside the answer; repeat it.")] = None,
    url: Annotated[
        str | None, typer.Option(help="An ingress whose models answer, as bulk, behind the requests of others.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="A key, where it asks for one.", envvar="SEXTET_KEY")] = None,
    address: Annotated[
        str | None, typer.Option(help="Run on this Ray cluster, e.g. auto, instead of one of its own.")
    ] = None,
    actors: Annotated[int, typer.Option(help="Processes that hold the model.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="CPUs of each; all of this machine's by default, or 1 with --address.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or tensorrt; a GPU for each actor.")] = "cpu",
    shard_rows: Annotated[
        int | None, typer.Option(help="Rows of a part: what is written at once; 2,048, of texts to generate 64.")
    ] = None,
    max_bad_rows: Annotated[int, typer.Option(help="Rows that may be reported and left out.")] = 1000,
    encoding: Annotated[str, typer.Option(help="Of the inputs, such as cp949.")] = "utf-8",
    format_: Annotated[str | None, typer.Option("--format", help="Read the inputs as this suffix says: jsonl.")] = None,
) -> None:
    """Answer every row of a data set; where it was killed, the same command goes on.

    The answers are in the order of the input. Rows that cannot be answered are in NAME.bad.jsonl, each with its reason.
    Exit code 0: the output is complete; 75: the same command goes on with it later; 1: something has to change first.
    """
    args = BatchArgs(
        task=task,
        inputs=tuple(inputs),
        output=output,
        model=model,
        url=url,
        key=key,
        parameters=_object(parameters),
        columns=_columns(column or ()),
        keep=tuple(keep or ()),
        encoding=encoding,
        format=format_,
        shard_rows=shard_rows,
        max_bad_rows=max_bad_rows,
        device=device,  # type: ignore[arg-type]  # BatchArgs checks it
        actors=actors,
        threads=threads,
        address=address,
    )
    for name in PACKAGES:
        if find_spec(name) is None:
            raise ConfigurationError(f"sextet batch needs {name}: {install_command('batch')}")
    from batch.run import run

    result = run(args, _say)
    bad = f", {result['bad_rows']:,} bad rows in {result['bad_rows_in']}" if result["bad_rows"] else ""
    print(f"{output}: {result['rows']:,} rows at {result['rows_per_s']:,.3g} a second{bad}")


def _columns(given: Sequence[str]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for one in given:
        name, equals, column = one.partition("=")
        if not equals or not column:
            raise ConfigurationError(f"--column is {one!r}; allowed: FIELD=COLUMN")
        found[name] = int(column) if column.isdecimal() else column
    return found


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(f"--parameters is {text[:80]!r}; allowed: a JSON object")
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
