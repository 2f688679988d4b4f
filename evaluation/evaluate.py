"""`sextet evaluate X --data FILE`: score a checkpoint, an artifact or a running task on labelled rows.

An artifact is scored beside the checkpoint that it was made from, which shows the price of its precision. The scores
are written into its manifest and card, or into metrics.json and card of a checkpoint of `sextet finetune`.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from checkpoints.checkpoint import ResolvedCheckpoint, load_model, load_tokenizer
from checkpoints.frameworks import Progress, quiet
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

Post = Callable[[str, Any], Any]
IntoCard = Callable[[str, Report, str, Sequence[str]], str]
PICTURE = "confusion-"


def evaluate(args: EvaluateArgs, post: Post, say: Progress, *, write_down: bool = True) -> Report:
    """Score every system on the same rows; `write_down` writes the scores into artifacts and checkpoints.

    `post` sends a body to a URL. Raises SextetError for data, systems or a task that do not fit each other.
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
            check_output(Path(name))  # before hours of scoring
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
        _keep(report, task, args.output, args.systems if write_down else (), say)
    except (OSError, SextetError) as error:
        say(report.text())  # hours of scoring must not be lost
        if isinstance(error, SextetError):
            raise
        detail = f" ({error.filename})" if error.filename else ""
        raise ConfigurationError(f"what was measured cannot be kept: {error.strerror or error}{detail}") from None
    return report


def _keep(report: Report, task: str, output: Path | None, systems: Sequence[str], say: Progress) -> None:
    if output is not None:
        text = json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n"
        (output / "report.json").write_text(text, encoding="utf-8")
        _draw(report, report.name(), output, say)
    # An artifact that is named alone has the column of its checkpoint before its own.
    columns = list(report.measured)[-len(systems) :] if systems else []
    for name, column in zip(systems, columns, strict=True):
        _write_down(Path(name), report, say, task=task, column=column)


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
    """Make the folder of the report before anything is scored."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"output is {output}, which is no folder ({error.strerror})") from None


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _systems(args: EvaluateArgs, task: str, post: Post, say: Progress) -> list[System]:
    """The systems that `args` names; an artifact that is named alone comes after its checkpoint."""
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


def _source(artifact: ModelArtifact, task: str, say: Progress) -> list[System]:
    source = artifact.manifest.source
    try:
        checkpoint = resolve(source.checkpoint, source.requested, progress=say)
        if checkpoint.revision != source.revision:
            raise CheckpointError(f"{source.checkpoint} has changed since the export")
        return [_torch(checkpoint, task, say)]
    except CheckpointError as error:
        say(f"no column for PyTorch: {error}")
        return []


def _torch(checkpoint: ResolvedCheckpoint, task: str, say: Progress) -> TorchSystem:
    import torch

    check_task(checkpoint, task)
    if TASKS[task].head.auto_class == ENCODER_DECODER and not checkpoint.config.is_encoder_decoder:
        raise CheckpointError(
            f"{checkpoint.name} does {task} by instruction, which transformers has no pipeline for; its artifact can"
        )
    with quiet(say):
        model = load_model(checkpoint, task).to("cuda" if torch.cuda.is_available() else "cpu")
        return TorchSystem("PyTorch", task, model, load_tokenizer(checkpoint))


def _read(args: EvaluateArgs, task: str, problem_type: str | None, say: Progress) -> tuple[Dataset, list[str]]:
    """The rows, and how they were drawn where not all are used."""
    data = DataArgs(task, args.columns, args.labels, problem_type, args.encoding, args.format, args.max_bad_rows)
    rows = read([args.data], data, BadRows(args.max_bad_rows, say))
    if args.max_samples is None or args.max_samples >= len(rows):
        return rows, []
    say(f"{args.data}: {args.max_samples} of {len(rows)} rows, drawn with seed {args.seed}")
    drawn = rows.shuffle(seed=args.seed).select(range(args.max_samples))
    return drawn, [f"{args.max_samples} rows drawn with seed {args.seed}"]


def _distinct(name: str, taken: Mapping[str, Any]) -> str:
    return next(one for one in (name, *(f"{name} {n}" for n in range(2, 99))) if one not in taken)


def _draw(report: Report, of: str, folder: Path, say: Progress) -> list[Path]:
    """Draw the confusion matrices into `folder`; the file names hold `of` and the system."""
    paths = []
    for name, one in report.measured.items():
        if one.confusion is not None:
            title = re.sub(r"[^\w.]+", "-", f"{of} {name}")
            if len(title) > 80:  # file names have at most 255 bytes, and a character up to four
                title = f"{title[:40]}-{hashlib.sha256(title.encode()).hexdigest()[:16]}"
            path = folder / f"{PICTURE}{title}.png"
            plots.confusion(one.confusion, one.labels, f"{name}, {report.rows} rows of {report.data}", path)
            paths.append(path)
            say(f"wrote {path}")
    return paths


def _write_down(folder: Path, report: Report, say: Progress, *, task: str, column: str) -> None:
    """Write the report into an artifact as a whole, so that it is valid at every moment, or into a checkpoint's files.

    `column` is the folder's own among the systems of the report.
    """
    into_card = partial(with_measured, task=task, model=folder.resolve().name, column=column)
    try:
        if (folder / MANIFEST_NAME).is_file():
            placed = _into_artifact(ModelArtifact.open(folder), report, into_card)
        elif (folder / "metrics.json").is_file() and (folder / "recipe.yaml").is_file():
            placed = _into_checkpoint(folder, report, into_card)
        else:
            return
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        say(f"{folder} is read-only: what was measured is not written into it")
        return
    say(f"wrote it into {folder}{placed}")


def _placed(report: Report, taken: Mapping[str, Any]) -> str:
    """The end of the report line: which earlier scores among `taken` were replaced, or have the same name."""
    plain, name = report.name(), report.name(taken)
    if name in taken:
        return f", in the place of what was measured on {name} before"
    return f" as {name}: the {plain} that was measured before is another" if name != plain else ""


def _into_artifact(artifact: ModelArtifact, report: Report, into_card: IntoCard) -> str:
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
        card.unlink(missing_ok=True)  # a hard link: writing it would change the artifact
        text = into_card(text, report, measured_on, [path.name for path in pictures])
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


def _into_checkpoint(folder: Path, report: Report, into_card: IntoCard) -> str:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    taken = metrics.get("measured", {})
    measured_on = report.name(taken)
    metrics["measured"] = {**taken, measured_on: report.as_json()}
    _replace(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    pictures = _draw(report, measured_on, folder, lambda _line: None)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    text = into_card(text, report, measured_on, [path.name for path in pictures])
    _replace(card, text)
    _remove_unshown(folder, text)
    return _placed(report, taken)


def _remove_unshown(folder: Path, card: str) -> None:
    """Remove pictures that the card no longer shows."""
    for path in folder.glob(f"{PICTURE}*.png"):
        if f"({path.name})" not in card:
            path.unlink()


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
