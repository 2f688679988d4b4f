"""Run: the driver of `sextet batch`. It checks everything, starts Ray or joins it, and keeps each part that comes back.

    InputDatasource (a task per source) ──> Scorer (actors) ──> this process: Ledger, Progress

Ray Data moves the parts, restarts actors that die and holds readers back where the actors are slower.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import msgspec

from batch.args import BatchArgs
from batch.ledger import Ledger
from batch.lines import Form
from batch.local_model import LocalModel
from batch.parts import Place, Reading
from batch.progress import Progress
from batch.scorer import Finished
from batch.served_model import ServedModel
from batch.sources import Source, find
from deployments.cluster.local_ray import connected, own_folder, started
from deployments.cluster.progress import Say
from deployments.cluster.ray_environment import prepare_without_serve
from deployments.cluster.signals import Signals, StopRequested
from deployments.served import served
from pipelines.errors import ConfigurationError, InvalidInputError, SextetError
from pipelines.misfit import nearest
from pipelines.runtime.artifact import ModelArtifact
from stores.fetch import fetch

CALLS = 3  # of an actor at once: one part is tokenized, one in the model, one is written
READERS = 2  # sources that are read at once, for each actor
RESTARTS = 3  # of an actor that dies, and of a part in it: what kills actors comes to an end
OBJECT_STORE_BYTES = 512 * 2**20
WORKER_SETUP = "deployments.cluster.worker_setup.bind_to_loopback"


class BatchError(SextetError):
    """The run ended before its output was complete; what is finished is kept."""


class BatchStoppedError(BatchError):
    """A signal ended the run: the same command goes on."""

    exit_status = 75


def run(args: BatchArgs, say: Say) -> dict[str, Any]:
    """Answer all rows; returns what came of it: rows, bad rows, rows per second.

    What an earlier run with the same arguments has finished is not done again. Raises a SextetError of one line.
    """
    signals = Signals()
    signals.install()
    try:
        return _run(args, signals, say)
    except (StopRequested, SystemExit):  # Ray turns a SIGTERM during its own start into SystemExit
        raise _stopped() from None
    except Exception:
        if signals.stop_was_requested:  # where it arrives in Ray's own code, Ray raises an error of its own
            raise _stopped() from None
        raise


def _run(args: BatchArgs, signals: Signals, say: Say) -> dict[str, Any]:
    sources = find(args.inputs, args.format)
    identities = [source.identity() for source in sources]
    ledger = Ledger(args)
    model, version = _model(args)
    with ledger.held():
        reading = Reading.of(args, sources[0])
        for name, column in reading.columns.items():
            if name != column and name not in args.columns:
                say(f"{sources[0].name}: column {column!r} is taken for {name!r}; --column {name}=NAME takes another")
        plan = _plan(args, version, reading, dict(zip([one.name for one in sources], identities, strict=True)))
        result = ledger.open(plan)
        if result is not None:
            say(f"{args.output} is complete already")
            return result
        if ledger.finished:
            say(f"going on: {len(ledger.finished):,} parts are finished already")
        with ExitStack() as stack:
            if args.address is not None:
                stack.enter_context(connected(args.address))
            else:  # nothing of it stays behind, even where this process is killed
                folder = stack.enter_context(own_folder())
                prepare_without_serve()
                stack.enter_context(started(folder, signals, say, WORKER_SETUP, OBJECT_STORE_BYTES))
            if isinstance(model, LocalModel):
                model = replace(model, threads=_threads(args))
            progress = Progress(len(sources), say)
            places = _keep(_finished(args, model, sources, reading, ledger.finished), args, ledger, progress)
        _require_all(places, len(sources))
        if not progress.rows:
            raise InvalidInputError(f"{', '.join(args.inputs)}: no rows")
        if progress.rows == progress.bad_rows:
            raise BatchError(f"no row was answered: all {progress.rows:,} are bad, such as {progress.reason}")
        result = {
            "rows": progress.rows - progress.bad_rows,
            "bad_rows": progress.bad_rows,
            "bad_rows_in": ledger.bad_name if progress.bad_rows else None,
            "rows_per_s": round(progress.rows_per_s, 3),
            "first_part_at": progress.began_at,
            "seconds": round(progress.seconds, 3),
        }
        ledger.end(list(places), result)
        return result


def _keep(finished: Iterator[Finished], args: BatchArgs, ledger: Ledger, progress: Progress) -> dict[Place, bool]:
    """Write each part; returns all places, and whether each is the last of its source."""
    places: dict[Place, bool] = {}
    for part in finished:
        if part.is_new:
            ledger.write(part)
        else:
            part = msgspec.structs.replace(part, n_bad=ledger.bad_rows(part.place))
        places[part.place] = part.is_last
        progress.note(part)
        if progress.bad_rows > args.max_bad_rows:
            raise BatchError(
                f"{progress.bad_rows} bad rows ({progress.reason}); allowed by --max-bad-rows: {args.max_bad_rows}"
            )
    return places


def _finished(
    args: BatchArgs,
    model: LocalModel | ServedModel,
    sources: Sequence[Source],
    reading: Reading,
    finished: frozenset[Place],
) -> Iterator[Finished]:
    """The parts as they are finished, in any order."""
    import ray.data

    from batch.datasource import InputDatasource
    from batch.scorer import Scorer, finished_of

    _quieten()
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # each part is a block, which an actor gets as soon as it was read
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    form = Form(args.task, args.suffix, args.keep, tuple(one.name for one in sources) if len(sources) > 1 else ())
    is_local = isinstance(model, LocalModel)
    threads = model.threads if isinstance(model, LocalModel) and args.device == "cpu" else 0.1
    parts = ray.data.read_datasource(
        InputDatasource(sources, reading, finished),
        num_cpus=0,  # readers are fast, and the actors have the cores
        concurrency=min(len(sources), READERS * args.actors),
        override_num_blocks=len(sources),
    ).map_batches(
        Scorer,
        fn_constructor_args=(model, form),
        fn_constructor_kwargs={"gives_way": is_local and args.address is not None},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=args.actors,
            max_concurrent_calls_per_actor=CALLS,
            max_tasks_in_flight_per_actor=CALLS + 1,
            enable_true_multi_threading=True,
        ),
        num_cpus=threads,
        num_gpus=None if args.device == "cpu" else 1,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    tables = iter(parts.iter_batches(batch_size=1, batch_format="pyarrow"))
    try:
        with _without_stderr():
            table = next(tables, None)
        while table is not None:
            yield finished_of(table)
            table = next(tables, None)
    except SextetError:
        raise
    except Exception as error:
        raise _worded(error) from None


def _model(args: BatchArgs) -> tuple[LocalModel | ServedModel, str]:
    """Who answers, and the version of the model. Raises a SextetError where it cannot."""
    if args.url is not None:
        model = ServedModel(args.task, args.url, args.model, args.key, dict(args.parameters))
        routes = {one["route"]: one["model"] or {} for one in served(args.url, args.key)}
        if model.route not in routes:
            near = nearest(model.route, routes)
            raise ConfigurationError(f"{args.url} does not serve {model.route}{near}; it serves {', '.join(routes)}")
        return model, str(routes[model.route].get("version"))
    assert args.model is not None
    fetched = fetch(args.model)
    artifact = ModelArtifact.open(fetched.folder, task=args.task)
    artifact.check_device(args.device)
    return LocalModel(args.task, fetched.pinned, dict(args.parameters), args.device), artifact.version


def _plan(args: BatchArgs, version: str, reading: Reading, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What decides the output: a run goes on only with parts that were made from the same."""
    return {
        "task": args.task,
        "model": version,
        "parameters": dict(args.parameters),
        "inputs": dict(inputs),
        "columns": reading.columns,
        "keep": list(args.keep),
        "encoding": args.encoding,
        "format": args.format,
        "rows of a part": args.part_rows,
    }


def _threads(args: BatchArgs) -> int:
    """CPUs of an actor. Raises ConfigurationError where no node has as many."""
    if args.device != "cpu":
        return args.threads or 1
    import ray

    most = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    threads = args.threads or (max(1, most // args.actors) if args.address is None else 1)
    if threads > most:
        raise ConfigurationError(f"--threads is {threads}; allowed: at most {most}, the CPUs of the largest node")
    return threads


def _require_all(places: Mapping[Place, bool], sources: int) -> None:
    """Raise BatchError unless every part of every source is there."""
    for source in range(sources):
        numbers = sorted(number for index, number in places if index == source)
        if numbers != list(range(len(numbers))) or not numbers or not places[source, numbers[-1]]:
            raise BatchError("Ray Data ended before all parts were finished; the same command goes on with the rest")


def _worded(error: BaseException) -> SextetError:
    """An error of Ray in one line; ours, where one of ours is behind it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SextetError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = lines[-1] if lines else type(error).__name__
    return BatchError(f"the batch stopped ({type(error).__name__}: {detail[:200]}); the same command goes on with it")


def _stopped() -> BatchStoppedError:
    return BatchStoppedError("stopped; the same command goes on where this ended")


@contextmanager
def _without_stderr() -> Iterator[None]:
    """While actors start: Ray's C++ code writes there that their arguments might be lost, which nobody can change."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quieten() -> None:
    """Ray Data reports to its log alone: progress and errors are ours."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="ray")
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # nothing else bounds restarts
