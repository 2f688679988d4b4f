"""The command line. Every command imports what it needs when it runs: `sextet --help` loads no framework."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.artifact import TASKS
from pipelines.errors import ConfigurationError, SextetError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Six NLP tasks on Ray Serve and ONNX Runtime: export checkpoints, serve them, ask them, fine-tune them.",
)
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="SEXTET_DEBUG")]


@app.callback()
def root(debug: Debug = False) -> None:
    os.environ["SEXTET_DEBUG"] = "1" if debug else ""


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A folder, a Hub id, a .gguf file or starter:NAME; with --all, a cluster.yaml.")
    ] = "",
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")] = "",
    output: Annotated[Path | None, typer.Option(help="The artifact's folder.")] = None,
    revision: Annotated[str | None, typer.Option(help="A commit, tag or branch of the Hub repository.")] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, int8 or int4 (CPU), or fp16 (CUDA); int4 for decoder-only models.")
    ] = "fp32",
    optimize: Annotated[str | None, typer.Option(help="O1, O2, O3 or O4; chosen per device if absent.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    everything: Annotated[bool, typer.Option("--all", help="Every artifact that cluster.yaml names.")] = False,
    allow_untrained_head: Annotated[bool, typer.Option(help="Export a head that was never trained.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Load pickled weights: they can run code.")] = False,
) -> None:
    """Turn a checkpoint into an ONNX artifact that was compared with PyTorch."""
    from export.build import ExportArgs, export_all, export_checkpoint

    if everything:
        if task or output is not None:
            raise ConfigurationError("--all takes tasks and folders from cluster.yaml: leave --task and --output out")
        from deployments.config import model_sources

        export_all([ExportArgs(**args) for args in model_sources(Path(checkpoint or "cluster.yaml"))], progress=_say)
        return
    if not checkpoint or not task or output is None:
        raise ConfigurationError("sextet export needs CHECKPOINT, --task and --output; or --all [cluster.yaml]")
    args = ExportArgs(
        checkpoint=checkpoint,
        task=task,
        output=output,
        revision=revision,
        precision=precision,
        optimize=optimize,
        device=device,
        allow_untrained_head=allow_untrained_head,
        allow_pickle=allow_pickle,
    )
    export_checkpoint(args, progress=_say)


@app.command()
def serve(
    cluster: Annotated[Path, typer.Argument(help="A Ray Serve config file.")] = Path("cluster.yaml"),
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of the file's.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the ingress, instead of the file's.")] = None,
    address: Annotated[str | None, typer.Option(help="Deploy onto this running Ray cluster, e.g. auto.")] = None,
) -> None:
    """Start the cluster, answer one real question per task, serve until SIGINT or SIGTERM."""
    from deployments.launch import serve as run

    run(cluster, host=host, port=port, address=address, progress=_say)


@app.command()
def ask(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    text: Annotated[list[str], typer.Argument(help="One or more texts; QUESTION CONTEXT for question-answering.")],
    url: Annotated[str, typer.Option(help="The ingress.", envvar="SEXTET_URL")] = "http://127.0.0.1:8000",
) -> None:
    """Ask a running cluster one thing from the terminal."""
    from deployments.ask import ask as send

    _print_json(send(task, text, url=url))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def finetune(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(help="A recipe in YAML; --name value overrides its keys.")] = None,
) -> None:
    """Fine-tune a checkpoint on labelled text: RECIPE.yaml, or --model --task --train --validation --output."""
    from export.finetune import FinetuneArgs
    from export.finetune import finetune as train

    _say(f"wrote {train(FinetuneArgs.read(recipe, context.args))}")


bench = typer.Typer(no_args_is_help=True, help="Measure a running cluster: latency, throughput, memory, errors.")
app.add_typer(bench, name="bench")
_SCENARIOS = {
    "single-stream": "One request at a time: latency.",
    "offline": "As fast as it goes: throughput.",
    "server": "Poisson arrivals: the highest rate whose p99 latency meets --slo-ms.",
    "sweep": "A curve over a list of concurrencies or rates.",
    "soak": "One rate held for --duration-s: errors, and the memory of the replicas on this machine.",
}


def _bench(
    context: typer.Context,
    url: Annotated[str, typer.Option(help="The ingress.", envvar="SEXTET_URL")] = "http://127.0.0.1:8000",
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")] = "text-classification",
    protocol: Annotated[str, typer.Option(help="The API to speak: huggingface.")] = "huggingface",
    texts: Annotated[Path | None, typer.Option(help="A file with one text per line, instead of --lengths.")] = None,
    lengths: Annotated[
        str, typer.Option(help="Tokens of synthetic texts: fixed:N, uniform:LOW-HIGH or lognormal:MEDIAN,P95.")
    ] = "lognormal:24,200",
    n_texts: Annotated[int, typer.Option(help="How many different texts are sent, over and over.")] = 1000,
    inputs_per_request: Annotated[int, typer.Option(help="Texts in one request.")] = 1,
    stream: Annotated[bool, typer.Option(help="Server-sent events: ttft, inter-token latency, tokens/s.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Of the generating tasks, decoded greedily.")] = 32,
    parameters: Annotated[str, typer.Option(help="A JSON object for the body's parameters.")] = "{}",
    artifact: Annotated[
        Path | None, typer.Option(help="The served artifact: its tokenizer measures lengths, --against raw runs it.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="raw: measure the artifact in this process too.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the raw pipeline; as many as cores if absent.")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests under way at once; for sweep a list 1,2,4.")] = "",
    rate: Annotated[str, typer.Option(help="Requests per second; for sweep a list 10,20,40.")] = "",
    slo_ms: Annotated[
        float | None, typer.Option(help="The objective for the p99 latency; goodput counts by it.")
    ] = None,
    duration_s: Annotated[float, typer.Option(help="Of each measurement.")] = 10.0,
    warm_up_s: Annotated[float, typer.Option(help="Sent before each measurement and not counted.")] = 2.0,
    repetitions: Annotated[int, typer.Option(help="How often everything is measured: their spread is the noise.")] = 3,
    seed: Annotated[int, typer.Option(help="Of texts, lengths and arrivals.")] = 0,
    timeout_s: Annotated[float, typer.Option(help="After which a request has failed.")] = 60.0,
    processes: Annotated[int | None, typer.Option(help="Load generators; as many as needed if absent.")] = None,
    output: Annotated[Path | None, typer.Option(help="The result file; the page and plots lie beside it.")] = None,
) -> None:
    command = _bench_command()
    given = {name: value for name, value in context.params.items() if value is not None}
    command.bench(command.BenchArgs(scenario=str(context.info_name), **given), say=_say)


for _name, _summary in _SCENARIOS.items():
    bench.command(_name, help=_summary)(_bench)


@bench.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A result file.")],
    after: Annotated[Path, typer.Argument(help="Another one, of the same scenario.")],
) -> None:
    """Which figures of two results differ by more than the noise of their repetitions."""
    _bench_command().bench_compare(before, after)


def _bench_command() -> Any:
    """The module behind `sextet bench`; raises ConfigurationError where its packages are missing."""
    try:
        from benchmarks import command
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"sextet bench needs {error.name}: pip install 'sextet[bench]'") from None
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an expected error is one line on stderr and exit code 1, a traceback only with --debug."""
    try:
        app(args=arguments)
    except SextetError as error:
        if os.environ.get("SEXTET_DEBUG"):
            raise
        sys.exit(f"sextet: {error}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(answer: Any) -> None:
    import json

    print(json.dumps(answer, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
