"""`sextet evaluate X --data FILE`: how good a checkpoint, an artifact or a running task is, on labelled rows.

An artifact is measured beside the checkpoint that it was made from, so that the price of its precision is seen, and
what was measured is written into its manifest and card; into metrics.json and card of a checkpoint of `finetune`.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from checkpoints.checkpoint import ResolvedCheckpoint, load_model, load_tokenizer
from checkpoints.frameworks import quiet
from checkpoints.heads import ENCODER_DECODER, REGRESSION
from checkpoints.resolve import resolve
from evaluation import plots
from evaluation.args import EvaluateArgs
from evaluation.measures import check_problem_type, measure_of
from evaluation.report import Report, data_digest, data_name, with_measured
from evaluation.rows import BadRows, DataArgs, read
from evaluation.scores import Scored
from evaluation.systems import ArtifactSystem, ServedSystem, System, TorchSystem, task_of
from export.graphs.convert import check_task
from export.staging import check_output, place, staging
from pipelines.errors import CheckpointError, ConfigurationError, SextetError
from pipelines.runtime.artifact import MANIFEST_NAME, ModelArtifact
from pipelines.tasks import TASKS

__all__ = ["EvaluateArgs", "evaluate"]

Say = Callable[[str], None]
Post = Callable[[str, Any], Any]
PICTURE = "confusion-"


def evaluate(args: EvaluateArgs, post: Post, say: Say, *, write_down: bool = True) -> Report:
    """Measure every system on the same rows, and (unless told not to) write it into artifacts and checkpoints.

    `post` asks a URL. Raises SextetError for data, systems or a task that do not fit each other.
    """
    check_problem_type(args.problem_type)
    for name, least in {"resamples": 1, "max_samples": 1, "max_bad_rows": 0, "seed": 0}.items():
        number = getattr(args, name)
        if number is not None and number < least:
            raise ConfigurationError(f"{name} is {number}; allowed: {least} and above")
    task = _task(args)
    measure = measure_of(task)
    measure.check_parameters(args.parameters)
    if args.output is not None:
        _make(args.output)
    for name in args.systems if write_down else ():
        if (Path(name) / MANIFEST_NAME).is_file():
            check_output(Path(name))  # before the measuring, which would be in vain
    systems = _systems(args, task, post, say)
    problem_type = args.problem_type or next((one.problem_type for one in systems if one.problem_type), None)
    rows, drawn = _read(args, task, problem_type, say)
    measured: dict[str, Scored] = {}
    for system in systems:
        system.problem_type = problem_type
        measured[_distinct(system.name, measured)] = measure.score(system, rows, args.parameters)
    settings = (*drawn, *(f"{name}={json.dumps(value)}" for name, value in sorted(args.parameters.items())))
    report = Report(data_name(args.data), data_digest(args.data), len(rows), measured, args.resamples, settings)
    try:
        _keep(report, args.output, args.systems if write_down else (), say)
    except (OSError, SextetError) as error:
        say(report.text())  # it may have taken hours
        if isinstance(error, SextetError):
            raise
        detail = f" ({error.filename})" if error.filename else ""
        raise ConfigurationError(f"what was measured cannot be kept: {error.strerror or error}{detail}") from None
    return report


def _keep(report: Report, output: Path | None, systems: Sequence[str], say: Say) -> None:
    if output is not None:
        text = json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n"
        (output / "report.json").write_text(text, encoding="utf-8")
        _draw(report, report.name(), output, say)
    for name in systems:
        _write_down(Path(name), report, say)


def _task(args: EvaluateArgs) -> str:
    if args.task is not None:
        if args.task not in TASKS:
            raise ConfigurationError(f"task is {args.task!r}; allowed: {', '.join(TASKS)}")
        return args.task
    first = args.systems[0]
    if _is_url(first):
        return task_of(first)
    if (Path(first) / MANIFEST_NAME).is_file():
        return ModelArtifact.open(first).manifest.task
    recipe = Path(first) / "recipe.yaml"
    if recipe.is_file():
        import yaml

        found = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("task") in TASKS:
            return str(found["task"])
    raise ConfigurationError(f"{first} does not say its task; give --task, one of {', '.join(TASKS)}")


def _make(output: Path) -> None:
    """The folder of a report, before the measuring that is to go into it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"output is {output}, which is no folder ({error.strerror})") from None


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _systems(args: EvaluateArgs, task: str, post: Post, say: Say) -> list[System]:
    """What was named; an artifact that is named alone comes after its checkpoint."""
    found: list[System] = []
    for name in args.systems:
        if _is_url(name):
            found.append(ServedSystem(name, post))
        elif (Path(name) / MANIFEST_NAME).is_file():
            artifact = ArtifactSystem(Path(name), task)
            if not args.alone and len(args.systems) == 1:
                found += _source(artifact.artifact, task, say)
            found.append(artifact)
        else:
            found.append(_torch(resolve(name, progress=say), task, say))
    for system in found:
        if system.problem_type is None and len(system.labels) == 1:
            system.problem_type = REGRESSION
    return found


def _source(artifact: ModelArtifact, task: str, say: Say) -> list[System]:
    source = artifact.manifest.source
    try:
        checkpoint = resolve(source.checkpoint, source.requested, progress=say)
        if checkpoint.revision != source.revision:
            raise CheckpointError(f"{source.checkpoint} has changed since the export")
        return [_torch(checkpoint, task, say)]
    except CheckpointError as error:
        say(f"no column for PyTorch: {error}")
        return []


def _torch(checkpoint: ResolvedCheckpoint, task: str, say: Say) -> TorchSystem:
    import torch

    check_task(checkpoint, task)
    if TASKS[task].head.auto_class == ENCODER_DECODER and not checkpoint.config.is_encoder_decoder:
        raise CheckpointError(
            f"{checkpoint.name} does {task} by instruction, which transformers has no pipeline for; its artifact can"
        )
    with quiet(say):
        model = load_model(checkpoint, task).to("cuda" if torch.cuda.is_available() else "cpu")
        return TorchSystem("PyTorch", task, model, load_tokenizer(checkpoint))


def _read(args: EvaluateArgs, task: str, problem_type: str | None, say: Say) -> tuple[Dataset, list[str]]:
    """The rows, and how they were drawn where they are a part of all."""
    data = DataArgs(task, args.columns, args.labels, problem_type, args.encoding, args.format, args.max_bad_rows)
    rows = read([args.data], data, BadRows(args.max_bad_rows, say))
    if args.max_samples is None or args.max_samples >= len(rows):
        return rows, []
    say(f"{args.data}: {args.max_samples} of {len(rows)} rows, drawn with seed {args.seed}")
    drawn = rows.shuffle(seed=args.seed).select(range(args.max_samples))
    return drawn, [f"{args.max_samples} rows drawn with seed {args.seed}"]


def _distinct(name: str, taken: Mapping[str, Any]) -> str:
    return next(one for one in (name, *(f"{name} {n}" for n in range(2, 99))) if one not in taken)


def _draw(report: Report, of: str, folder: Path, say: Say) -> list[Path]:
    """A confusion matrix for every system that has one, under a name of its own for each of `of` and system."""
    paths = []
    for name, one in report.measured.items():
        if one.confusion is not None:
            title = re.sub(r"[^\w.]+", "-", f"{of} {name}")
            if len(title) > 80:  # a name of a file has 255 bytes, of up to four a character here
                title = f"{title[:40]}-{hashlib.sha256(title.encode()).hexdigest()[:16]}"
            path = folder / f"{PICTURE}{title}.png"
            plots.confusion(one.confusion, one.labels, f"{name}, {report.rows} rows of {report.data}", path)
            paths.append(path)
            say(f"wrote {path}")
    return paths


def _write_down(folder: Path, report: Report, say: Say) -> None:
    """Into an artifact as a whole, so that it is valid at every moment; into the files of a finetuned checkpoint."""
    try:
        if (folder / MANIFEST_NAME).is_file():
            placed = _into_artifact(ModelArtifact.open(folder), report)
        elif (folder / "metrics.json").is_file() and (folder / "recipe.yaml").is_file():
            placed = _into_checkpoint(folder, report)
        else:
            return
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        say(f"{folder} is read-only: what was measured is not written into it")
        return
    say(f"wrote it into {folder}{placed}")


def _placed(report: Report, taken: Mapping[str, Any]) -> str:
    """What became of an earlier measurement among `taken`, if there is one of these data or of their name."""
    plain, name = report.name(), report.name(taken)
    if name in taken:
        return f", in the place of what was measured on {name} before"
    return f" as {name}: the {plain} that was measured before is another" if name != plain else ""


def _into_artifact(artifact: ModelArtifact, report: Report) -> str:
    manifest = artifact.manifest
    measured_on = report.name(manifest.metrics)
    with staging(artifact.path) as folder:
        finished = folder / "artifact"
        finished.mkdir()
        for name in manifest.files:
            _link(artifact.path / name, finished / name)
        pictures = _draw(report, measured_on, finished, lambda _line: None)
        card = finished / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        card.unlink(missing_ok=True)  # it is the published one's too
        text = with_measured(text, report, measured_on, [path.name for path in pictures])
        card.write_text(text, encoding="utf-8")
        _remove_unshown(finished, text)
        measured = {**manifest.metrics, measured_on: report.as_json()}
        place(finished, replace(manifest, metrics=measured), artifact.path)
    return _placed(report, manifest.metrics)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)


def _into_checkpoint(folder: Path, report: Report) -> str:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    taken = metrics.get("measured", {})
    measured_on = report.name(taken)
    metrics["measured"] = {**taken, measured_on: report.as_json()}
    _replace(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    pictures = _draw(report, measured_on, folder, lambda _line: None)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    text = with_measured(text, report, measured_on, [path.name for path in pictures])
    _replace(card, text)
    _remove_unshown(folder, text)
    return _placed(report, taken)


def _remove_unshown(folder: Path, card: str) -> None:
    """Pictures of an earlier measurement whose place in the card another one took."""
    for path in folder.glob(f"{PICTURE}*.png"):
        if f"({path.name})" not in card:
            path.unlink()


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
