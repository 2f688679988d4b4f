"""Build: one checkpoint becomes one artifact."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checkpoints
from checkpoints.checkpoint import ResolvedCheckpoint, load_model, load_tokenizer
from checkpoints.frameworks import Progress, full_disk, quiet
from checkpoints.generations import OPTIMUM, exporter_here
from checkpoints.resolve import resolve
from export.apart import export_apart
from export.args import ExportArgs
from export.card import model_card
from export.conversion import converted, level_of, taken
from export.graphs.convert import check_task, opset
from export.graphs.optimize import check_options
from export.parity.validate import validate
from export.quantization.quantize import quantization
from export.staging import check_output, place, staging, written_by
from export.tokenizers.tokenizer import chat_template, prompt_template, write_tokenizer
from pipelines.errors import ArtifactError, CheckpointError, ConfigurationError, SextetError, first_line
from pipelines.runtime.artifact import FileDigest, Manifest, ModelArtifact, Parity, Source
from pipelines.runtime.package import runtime_package
from pipelines.tasks import TASKS

__all__ = ["ExportArgs", "export_all", "export_checkpoint"]

_TOOLS = ("torch", "transformers", "onnx", "tokenizers")
_OPTIMUM = ("optimum", "optimum-onnx")
_CODE = (Path(__file__).parent, Path(checkpoints.__file__).parent)  # what an export runs
_COPIES = 4  # of the weights on the disk at once: exported decoders, rewritten ones, the merged one
_NOT_COMPARED = Parity(False, 0, float("inf"), 0.0, "not compared yet")


def export_checkpoint(
    args: ExportArgs, progress: Progress = lambda _line: None, alike: ModelArtifact | None = None
) -> ModelArtifact:
    """Resolve, convert, optimize, quantize, validate and publish.

    `alike` is an artifact of the same checkpoint and options for another task: its graphs are taken, and compared with
    PyTorch on the inputs of this task.

    Raises CheckpointError (also where the graphs do not agree with PyTorch) or ConfigurationError, in one line, with
    nothing left under `args.output` that was not there before.
    """
    if args.task not in TASKS:
        raise ConfigurationError(f"task is {args.task!r}; allowed: {', '.join(TASKS)}")
    check_options(args.precision, args.optimize, args.device, args.exporter)
    output = args.output.expanduser()
    check_output(output)
    if args.exporter != exporter_here():
        return export_apart([args], progress, keep=False, exporter=args.exporter)[0]
    started = time.monotonic()
    try:
        with quiet(progress) as progress:
            checkpoint = resolve(args.checkpoint, args.revision, allow_pickle=args.allow_pickle, progress=progress)
            check_task(checkpoint, args.task, allow_untrained_head=args.allow_untrained_head)
            with staging(output) as folder:
                _check_space(checkpoint, folder)
                artifact = _build(args, checkpoint, folder, output, progress, alike)
    except (ConfigurationError, ArtifactError):  # among them full caches
        raise
    except Exception as error:
        if (explained := _explained(args, output, error)) is error:
            raise
        raise explained from error
    parity = artifact.manifest.parity
    progress(
        f"wrote {output} in {time.monotonic() - started:.0f} s ({_megabytes(artifact.manifest)}; largest difference "
        f"{parity.largest_difference:.2g}, agreement {parity.agreement:.1%} on {parity.inputs} inputs)"
    )
    return artifact


def export_all(exports: Iterable[ExportArgs], progress: Progress = lambda _line: None) -> list[ModelArtifact]:
    """Export what is missing or altered, or was made from another source, with other options or by other code or tools.

    The other artifacts are kept. Two tasks that generate with one model have the same graphs: they are made once.
    """
    exports = list(exports)
    artifacts: list[ModelArtifact] = []
    apart = _all_apart(exports, progress)
    for args in exports:
        if args.output in apart:
            artifacts.append(apart[args.output])
            continue
        if args.output.exists():  # digests of its files, and of those of a local checkpoint, take seconds
            progress(f"checking {args.output}")
        current = _current(args, progress)
        if current is None:
            progress(f"exporting {args.checkpoint} for {args.task} to {args.output}")
            alike = next((one for one in artifacts if _has_graphs_of(one.manifest, args)), None)
            current = export_checkpoint(args, progress, alike)
        artifacts.append(current)
    return artifacts


def _all_apart(exports: Sequence[ExportArgs], progress: Progress) -> dict[Path, ModelArtifact]:
    """By their folders, the artifacts whose exporter needs another environment; one process makes all of them."""
    others = [args for args in exports if args.exporter != exporter_here()]
    if not others:
        return {}
    made = export_apart(others, progress, keep=True, exporter=others[0].exporter)
    return {args.output: artifact for args, artifact in zip(others, made, strict=True)}


@cache
def made_with() -> dict[str, str]:
    """What decides an artifact beside its source and options: versions of the tools, and a digest of this code.

    Both packages of ONNX Runtime make the same artifact: it is made and compared on the CPU.
    """
    digest = hashlib.sha256()
    for folder in _CODE:
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder.parent)} {FileDigest.of(file).sha256}\n".encode())
    tools = {name: version(name) for name in (*_TOOLS, *(_OPTIMUM if exporter_here() == OPTIMUM else ()))}
    return tools | {"onnxruntime": runtime_package()[1], "exporter": f"sha256:{digest.hexdigest()}"}


def _build(
    args: ExportArgs,
    checkpoint: ResolvedCheckpoint,
    folder: Path,
    output: Path,
    progress: Progress,
    alike: ModelArtifact | None,
) -> ModelArtifact:
    """The artifact from a checkpoint on this disk; `folder` is empty and becomes `output`."""
    work, finished = folder / "work", folder / "artifact"
    work.mkdir()
    finished.mkdir()
    progress(f"loading {checkpoint.name}")
    tokenizer = load_tokenizer(checkpoint)
    template = prompt_template(checkpoint, args.task, tokenizer)
    model = load_model(checkpoint, args.task, allow_untrained_head=args.allow_untrained_head)
    # Before the exporter moves generation parameters out of it.
    (finished / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
    if model.can_generate():
        (finished / "generation_config.json").write_text(model.generation_config.to_json_string(), encoding="utf-8")
    written = write_tokenizer(tokenizer, model, finished)
    if alike is not None and alike.manifest.source.revision == checkpoint.revision:
        progress(f"taking the graphs of {alike.path}")
        made = taken(alike, finished)
    else:
        made = converted(args, checkpoint, model, tokenizer, template, written, work, finished, progress)
    manifest = Manifest(
        task=args.task,
        source=Source(checkpoint.name, checkpoint.revision, checkpoint.licence, checkpoint.requested, checkpoint.base),
        architecture=model.config.model_type,
        precision=args.precision,
        device=args.device,
        graphs={role: graph.name for role, graph in made.graphs.items()},
        tokenizer=written.settings,
        parity=_NOT_COMPARED,
        optimization=made.optimization,
        cache=made.cache,
        rows=made.rows,
        quantization=quantization(args.precision, args.device),
        opset=opset(made.graphs),
        labels=_labels(args.task, model.config),
        problem_type=getattr(model.config, "problem_type", None),
        prompt_template=template,
        chat_template=chat_template(args.task, tokenizer),
        versions=made_with(),
    )
    progress(f"comparing {output.name} with PyTorch")
    parity = validate(ModelArtifact(finished, manifest), model, written.outside)
    if not parity.passed:
        raise CheckpointError(_disagreement(args, parity))
    manifest = replace(manifest, parity=parity)
    size = sum(file.stat().st_size for file in finished.iterdir())
    (finished / "README.md").write_text(model_card(manifest, output, size), encoding="utf-8")
    return place(finished, manifest, output)


def _has_graphs_of(manifest: Manifest, args: ExportArgs) -> bool:
    """Whether an artifact of another task has the graphs that an export of `args` would make."""
    made = (manifest.source.checkpoint, manifest.precision, manifest.device, manifest.versions)
    same = made == (args.checkpoint, args.precision, args.device, made_with())
    level = level_of(args, manifest.architecture, manifest.cache)
    return same and manifest.optimization == level and TASKS[args.task].generates and TASKS[manifest.task].generates


def _labels(task: str, config: Any) -> tuple[str, ...]:
    if not TASKS[task].labelled:
        return ()
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))


def _current(args: ExportArgs, progress: Progress) -> ModelArtifact | None:
    """The artifact that is there already, if it is whole and an export of `args` would make it again."""
    try:
        artifact = ModelArtifact.open(args.output, task=args.task)
    except ArtifactError:
        return None
    manifest = artifact.manifest
    made = (manifest.source.checkpoint, manifest.precision, manifest.device, manifest.optimization)
    if made != (args.checkpoint, args.precision, args.device, level_of(args, manifest.architecture, manifest.cache)):
        return None
    if manifest.versions != made_with():
        progress(f"{args.output} was made by {_first_change(manifest.versions)}")
        return None
    if (manifest.source.revision or "").startswith("sha256:"):  # local files may have changed under the same name
        with quiet(progress) as progress:
            found = resolve(args.checkpoint, allow_pickle=args.allow_pickle, progress=progress)
        return artifact if found.revision == manifest.source.revision else None
    # The branch may have moved; asking the Hub each time would be slow, and impossible offline.
    return artifact if args.revision in (manifest.source.requested, manifest.source.revision) else None


def _first_change(before: Mapping[str, str]) -> str:
    """The first tool whose version differs from the one that made the artifact."""
    name = next((name for name, now in made_with().items() if before.get(name) != now), None)
    if name in (None, "exporter") or name not in before:
        return "another release of the exporter"
    return f"{name} {before[name]}; here is {made_with()[name]}"


def _disagreement(args: ExportArgs, parity: Parity) -> str:
    differs = f"; {parity.disagreements[0]}" if parity.disagreements else ""
    increase = parity.perplexity_increase
    surprised = "" if increase is None else f"perplexity {increase:+.1%}, "
    remedy = "export it as fp32" if args.precision != "fp32" else "choose --optimize O1, or report the architecture"
    return (
        f"{args.checkpoint} as {args.precision} does not agree with PyTorch: agreement {parity.agreement:.1%}, "
        f"{surprised}"
        f"largest difference {parity.largest_difference:.2g} on {parity.inputs} inputs (required: {parity.threshold})"
        f"{differs}; nothing was written; {remedy}"
    )


def _check_space(checkpoint: ResolvedCheckpoint, folder: Path) -> None:
    needed, free = _COPIES * checkpoint.weights_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB free")


def _explained(args: ExportArgs, output: Path, error: Exception) -> SextetError:
    """The error for a full disk, for a write under `output` that failed, or for another OSError: it names the file.

    The frameworks fail with whatever an architecture that they do not expect leads to.
    """
    if (full := full_disk(error)) is not None:
        return _unwritable(output, full)
    if isinstance(error, SextetError):
        return error
    if not isinstance(error, OSError):
        kind = type(error).__name__
        return CheckpointError(f"{args.checkpoint} cannot be exported: {kind}: {first_line(error)} (see --debug)")
    if not isinstance(error.filename, str) or written_by(output, Path(error.filename)):
        return _unwritable(output, error)
    return CheckpointError(f"{args.checkpoint} cannot be exported: {error.filename}: {error.strerror}")


def _unwritable(output: Path, error: OSError) -> ConfigurationError:
    detail = f" ({error.filename})" if error.filename else ""
    remedy = "free some, or choose another --output" if error.errno == errno.ENOSPC else "choose another --output"
    return ConfigurationError(f"{output} cannot be written: {error.strerror or error}{detail}; {remedy}")


def _megabytes(manifest: Manifest) -> str:
    return f"{sum(file.size for file in manifest.files.values()) / 1e6:.1f} MB"
