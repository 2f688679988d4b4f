"""Command: `sextet bench SCENARIO`, from its options to table, result file, page and the last line of JSON."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import Say
from benchmarks.args import BenchArgs
from benchmarks.figures.compare import cautions, compare
from benchmarks.figures.page import table, write_page
from benchmarks.figures.result import Result, default_path
from benchmarks.load.bodies import BodyConfig, calls
from benchmarks.load.generator import Load
from benchmarks.load.texts import Lengths, counter, from_file, synthetic
from benchmarks.raw import RawPipeline
from benchmarks.scenarios import SCENARIOS, ScenarioConfig, bottlenecks
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.tasks import TASKS

__all__ = ["BenchArgs", "bench", "bench_compare", "prepare"]

LONGEST_TOKENS = 512  # of a synthetic text without an artifact, which knows the limit of its model
AGAINST = ("raw",)


def bench(args: BenchArgs, say: Say) -> None:
    """Measure and write; progress goes to `say`, the table and the last line to stdout.

    Raises ConfigurationError for options that are not allowed, UnreachableError where nothing listens.
    """
    config, raw = prepare(args)
    outcome = SCENARIOS[args.scenario](config, raw, say)
    result = Result(
        name=f"{args.scenario}-{args.task}",
        scenario=args.scenario,
        command=shlex.join(["sextet", *sys.argv[1:]]),
        load={name: str(value) if isinstance(value, Path) else value for name, value in asdict(args).items()},
        figures=outcome.figures,
        points=outcome.points,
        raw=outcome.raw,
        memory=outcome.memory,
        warnings=bottlenecks(outcome.points),
    )
    path = args.output or default_path(result.name)
    result.write(path)
    say(f"wrote {path} and {write_page(result, path.with_suffix('.html'))}")
    print(table(result))
    print(json.dumps(result.headline()))


def bench_compare(before: Path, after: Path) -> None:
    """Print how `after` differs from `before`, and one line of JSON last."""
    first, second = Result.read(before), Result.read(after)
    differences = compare(first, second)
    if not differences:
        raise ConfigurationError(f"{before} and {after} have no figure in common")
    for line in cautions(first, second):
        print(f"not the same: {line}")
    for difference in differences:
        print(difference)
    print(json.dumps({one.figure: {**asdict(one), "change": one.change} for one in differences}))


def prepare(args: BenchArgs) -> tuple[ScenarioConfig, RawPipeline | None]:
    """The load, and the raw pipeline with `--against raw`; raises ConfigurationError."""
    _check(args)
    artifact = ModelArtifact.open(args.artifact, task=args.task) if args.artifact else None
    texts = _texts(args, artifact)
    body = BodyConfig(args.protocol, args.stream, args.max_new_tokens, _parameters(args.parameters))
    host, port, prefix = _address(args.url)
    load = Load(
        host=host,
        port=port,
        calls=calls(f"{host}:{port}", prefix, TASKS[args.task], texts, args.inputs_per_request, body),
        duration_s=args.duration_s,
        warm_up_s=args.warm_up_s,
        seed=args.seed,
        slo_s=None if args.slo_ms is None else args.slo_ms / 1000,
        timeout_s=args.timeout_s,
    )
    config = ScenarioConfig(
        load=load,
        concurrencies=[int(one) for one in _numbers(args.concurrency, "--concurrency")],
        rates=_numbers(args.rate, "--rate"),
        repetitions=args.repetitions,
        processes=args.processes,
        task=args.task,
    )
    raw = RawPipeline(args.artifact, args.threads, texts, body) if args.against and args.artifact else None
    return config, raw


def _check(args: BenchArgs) -> None:
    if args.task not in TASKS:
        raise ConfigurationError(f"--task is {args.task!r}; allowed: {', '.join(TASKS)}")
    if args.against is not None and args.against not in AGAINST:
        raise ConfigurationError(f"--against is {args.against!r}; allowed: {', '.join(AGAINST)}")
    if args.against and args.artifact is None:
        raise ConfigurationError("--against raw calls the artifact in this process: name its folder with --artifact")
    positive = ("duration_s", "repetitions", "n_texts", "inputs_per_request", "max_new_tokens", "threads", "timeout_s")
    for name in (*positive, "slo_ms", "processes"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise ConfigurationError(f"--{name.replace('_', '-')} is {getattr(args, name)}; allowed: above 0")
    if args.warm_up_s < 0:
        raise ConfigurationError(f"--warm-up-s is {args.warm_up_s}; allowed: from 0")
    takes = {"single-stream": (), "offline": ("concurrency",), "server": (), "soak": ("rate",)}
    for name in ("concurrency", "rate"):
        if getattr(args, name) and name not in takes.get(args.scenario, ("concurrency", "rate")):
            raise ConfigurationError(f"{args.scenario} takes no --{name}")
        if args.scenario != "sweep" and "," in getattr(args, name):
            raise ConfigurationError(f"--{name} is {getattr(args, name)!r}; a list is for sweep")


def _texts(args: BenchArgs, artifact: ModelArtifact | None) -> list[str]:
    if args.texts is not None:
        return from_file(args.texts)[: args.n_texts]
    longest = artifact.manifest.tokenizer.max_length if artifact else LONGEST_TOKENS
    return synthetic(Lengths.parse(args.lengths), args.n_texts, args.seed, counter(artifact), longest)


def _parameters(given: str) -> Mapping[str, Any]:
    try:
        parameters = json.loads(given)
    except ValueError:
        parameters = None
    if not isinstance(parameters, dict):
        raise ConfigurationError(f"--parameters is {given!r}; allowed: a JSON object")
    return parameters


def _address(url: str) -> tuple[str, int, str]:
    """Host, port and the path in front of a task's own."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigurationError(f"--url is {url!r}; allowed: http://HOST:PORT")
    return parts.hostname, parts.port or 80, parts.path.rstrip("/")


def _numbers(given: str, name: str) -> list[float]:
    try:
        numbers = [float(one) for one in given.split(",") if one]
    except ValueError:
        numbers = [0.0]
    if not all(one > 0 for one in numbers):
        raise ConfigurationError(f"{name} is {given!r}; allowed: numbers above 0, with commas between")
    return numbers
