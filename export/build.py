"""Build: one checkpoint becomes one artifact."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checkpoints
from checkpoints.checkpoint import ResolvedCheckpoint, load_model, load_tokenizer
from checkpoints.frameworks import Progress, full_disk, quiet
from checkpoints.resolve import resolve
from export.args import ExportArgs
from export.card import model_card
from export.graphs import seq2seq_slot_graph, slot_graph
from export.graphs.attention import fuse_attention
from export.graphs.convert import Graphs, check_task, convert, map_to_unknown, merge, opset, optimum_exports
from export.graphs.graph import share_weights
from export.graphs.optimize import check_options, default_level, optimize, supports
from export.graphs.packed import convert_to_packed
from export.graphs.stand_in import agrees
from export.parity.generation import fault_of_slots
from export.parity.samples import TEXTS
from export.parity.validate import validate
from export.quantization.outliers import outlier_matrices
from export.quantization.quantize import quantization, to_fp16, to_int4, to_int8
from export.staging import check_output, place, staging, written_by
from export.tokenizers.tokenizer import chat_template, prompt_template, write_tokenizer
from pipelines.errors import ArtifactError, CheckpointError, ConfigurationError, SextetError, first_line
from pipelines.runtime.artifact import FileDigest, Manifest, ModelArtifact, Parity, Source
from pipelines.runtime.package import runtime_package
from pipelines.tasks import TASKS

__all__ = ["ExportArgs", "export_all", "export_checkpoint"]

_TOOLS = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "tokenizers")
_CODE = (Path(__file__).parent, Path(checkpoints.__file__).parent)  # what an export runs
_COPIES = 4  # of the weights on the disk at once: exported decoders, rewritten ones, the merged one
_TYPICAL = 12  # texts to find outliers with
_NOT_COMPARED = Parity(False, 0, float("inf"), 0.0, "not compared yet")


def export_checkpoint(args: ExportArgs, progress: Progress = lambda _line: None) -> ModelArtifact:
    """Resolve, convert, optimize, quantize, validate and publish.

    Raises CheckpointError (also where the graphs do not agree with PyTorch) or ConfigurationError, in one line, with
    nothing left under `args.output` that was not there before.
    """
    if args.task not in TASKS:
        raise ConfigurationError(f"task is {args.task!r}; allowed: {', '.join(TASKS)}")
    check_options(args.precision, args.optimize, args.device)
    output = args.output.expanduser()
    check_output(output)
    started = time.monotonic()
    try:
        with quiet(progress) as progress:
            checkpoint = resolve(args.checkpoint, args.revision, allow_pickle=args.allow_pickle, progress=progress)
            check_task(checkpoint, args.task, allow_untrained_head=args.allow_untrained_head)
            with staging(output) as folder:
                _check_space(checkpoint, folder)
                artifact = _build(args, checkpoint, folder, output, progress)
    except (ConfigurationError, ArtifactError):  # among them full caches
        raise
    except Exception as error:
        if (explained := _explained(args, output, error)) is None:
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

    The other artifacts are kept.
    """
    artifacts = []
    for args in exports:
        if args.output.exists():  # digests of its files, and of those of a local checkpoint, take seconds
            progress(f"checking {args.output}")
        current = _current(args, progress)
        if current is None:
            progress(f"exporting {args.checkpoint} for {args.task} to {args.output}")
            current = export_checkpoint(args, progress)
        artifacts.append(current)
    return artifacts


@cache
def made_with() -> dict[str, str]:
    """What decides an artifact beside its source and options: versions of the tools, and a digest of this code.

    Both packages of ONNX Runtime make the same artifact: it is made and compared on the CPU.
    """
    digest = hashlib.sha256()
    for folder in _CODE:
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder.parent)} {FileDigest.of(file).sha256}\n".encode())
    tools = {name: version(name) for name in _TOOLS}
    return tools | {"onnxruntime": runtime_package()[1], "exporter": f"sha256:{digest.hexdigest()}"}


def _build(
    args: ExportArgs, checkpoint: ResolvedCheckpoint, folder: Path, output: Path, progress: Progress
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
    progress(f"converting {checkpoint.name} ({model.config.model_type}) to ONNX")
    is_packed = _may_be_packed(args) and _pack(model, work / "model.onnx")
    if is_packed:
        graphs, cache = {"model": work / "model.onnx"}, "plain"
    else:
        graphs, cache = _convert(args, model, work, progress)
    level = _level(args, model.config.model_type, cache)
    if written.outside is not None:
        map_to_unknown(graphs["encoder"], written.outside, tokenizer.unk_token_id)
    heads = getattr(model.config, "num_attention_heads", None)
    if not TASKS[args.task].generates and args.device == "cpu" and heads:
        fuse_attention(graphs["model"], heads)
    if level is not None and not is_packed:  # a packed graph has its fusions already
        progress(f"optimizing ({level})")
        optimize(graphs, level, model.config.model_type, args.device)
    if args.precision == "int8":
        progress("quantizing to int8")
        to_int8(graphs, keep=outlier_matrices(model, _typical(tokenizer, template, written.settings.max_length // 2)))
    if args.precision == "int4":
        progress("quantizing to int4")
        to_int4(graphs, args.device)
    if args.precision == "fp16" or (args.precision == "int4" and args.device != "cpu"):
        progress("converting to fp16")
        to_fp16(graphs)
    for graph in graphs.values():
        share_weights(graph)
    graphs = merge(graphs, work)
    for graph in graphs.values():
        for file in graph.parent.glob(f"{graph.name}*"):  # with its .data, where it is too large for one file
            shutil.move(file, finished / file.name)
    manifest = Manifest(
        task=args.task,
        source=Source(checkpoint.name, checkpoint.revision, checkpoint.licence, checkpoint.requested, checkpoint.base),
        architecture=model.config.model_type,
        precision=args.precision,
        device=args.device,
        graphs={role: graph.name for role, graph in graphs.items()},
        tokenizer=written.settings,
        parity=_NOT_COMPARED,
        optimization=level,
        cache=cache,
        rows="packed" if is_packed else "padded",
        quantization=quantization(args.precision, args.device),
        opset=opset({role: finished / graph.name for role, graph in graphs.items()}),
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


def _typical(tokenizer: Any, template: str | None, longest: int) -> list[list[int]]:
    """Typical inputs, at most `longest` tokens each."""
    prompts = [template.replace("{text}", text) if template else text for text in TEXTS[:_TYPICAL]]
    return [tokenizer(prompt, add_special_tokens=template is None).input_ids[:longest] for prompt in prompts]


def _convert(args: ExportArgs, model: Any, work: Path, progress: Progress) -> tuple[Graphs, str]:
    """The graphs and their kind of KV cache: `slots` where the model generates and can have them, else `plain`.

    Says why a model that generates cannot have slots.
    """
    if not TASKS[args.task].generates:
        _need_slots(args, f"{model.config.model_type} has none for {args.task}")
        return convert(model, args.task, work), "plain"
    reason = _obstacle(args, model)
    if reason is None:
        graphs, reason = _with_slots(args, model, work)
        if reason is None:
            return graphs, "slots"
    _need_slots(args, reason)
    if not optimum_exports(model.config):
        raise CheckpointError(
            f"{args.checkpoint} cannot be exported: Optimum does not know the architecture "
            f"{model.config.model_type!r}, and it cannot have KV cache slots: {reason}"
        )
    progress(f"answers will be decoded one by one: {reason}")
    return convert(model, args.task, work), "plain"


def _with_slots(args: ExportArgs, model: Any, work: Path) -> tuple[Graphs, str | None]:
    """The graphs with KV cache slots, and what is wrong with them."""
    try:
        graphs = convert(model, args.task, work, "slots")
    except Exception as error:  # of torch's exporter, or of the model's own code
        if isinstance(error, OSError) or full_disk(error) is not None:
            raise
        return {}, f"its graph with slots cannot be traced ({first_line(error)})"
    return graphs, None if model.config.is_encoder_decoder else fault_of_slots(model, graphs["model"])


def _obstacle(args: ExportArgs, model: Any) -> str | None:
    """Why a model that generates cannot have KV cache slots; None where it may."""
    if args.optimize:
        return f"the fusions of {args.optimize} do not know such a graph"
    if args.precision == "fp32" and args.device != "cpu":
        return "CUDA's attention over slots is for fp16"
    if not model.config.is_encoder_decoder:
        return slot_graph.obstacle(model)
    if args.precision == "int4":
        return f"{model.config.model_type} has none for {args.task}"
    if args.device == "tensorrt":
        return "the slots of encoder-decoders are for CPUs and CUDA"
    return seq2seq_slot_graph.obstacle(model.config)


def _need_slots(args: ExportArgs, reason: str) -> None:
    """Refuse options that need KV cache slots; `reason` says why the graph has none."""
    if args.precision == "int4":
        raise ConfigurationError(
            f"precision int4 is for decoder-only models whose graph keeps its cache in slots: {reason}; "
            f"use --precision {'int8' if args.device == 'cpu' else 'fp16'}"
        )


def _may_be_packed(args: ExportArgs) -> bool:
    """Whether an encoder may have packed rows: the fused kernels of packed attention are for fp16 on CUDA."""
    return not TASKS[args.task].generates and args.device == "cuda" and args.precision == "fp16"


def _pack(model: Any, graph: Path) -> bool:
    """Write the packed graph of a model whose attention has the usual form; else False, and no file."""
    if not convert_to_packed(model, graph):
        return False
    if not agrees(graph, model):
        graph.unlink()
        return False
    return True


def _level(args: ExportArgs, architecture: str, cache: str) -> str | None:
    """The optimization level of the options, else the default where the optimizer supports the graph."""
    default = default_level(args.precision, args.device, generates=TASKS[args.task].generates)
    return args.optimize or (default if supports(architecture) and cache == "plain" else None)


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
    if made != (args.checkpoint, args.precision, args.device, _level(args, manifest.architecture, manifest.cache)):
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


def _explained(args: ExportArgs, output: Path, error: Exception) -> SextetError | None:
    """The error for a full disk, for a write under `output` that failed, or for another OSError: it names the file."""
    if (full := full_disk(error)) is not None:
        return _unwritable(output, full)
    if not isinstance(error, OSError):
        return None
    if not isinstance(error.filename, str) or written_by(output, Path(error.filename)):
        return _unwritable(output, error)
    return CheckpointError(f"{args.checkpoint} cannot be exported: {error.filename}: {error.strerror}")


def _unwritable(output: Path, error: OSError) -> ConfigurationError:
    detail = f" ({error.filename})" if error.filename else ""
    remedy = "free some, or choose another --output" if error.errno == errno.ENOSPC else "choose another --output"
    return ConfigurationError(f"{output} cannot be written: {error.strerror or error}{detail}; {remedy}")


def _megabytes(manifest: Manifest) -> str:
    return f"{sum(file.size for file in manifest.files.values()) / 1e6:.1f} MB"
