"""Conversion: the graphs of an artifact, made from a PyTorch model or taken from the artifact of another task."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import ResolvedCheckpoint
from checkpoints.frameworks import Progress, full_disk
from export.args import ExportArgs
from export.graphs.convert import convert, map_to_unknown, merge, plain_exporter
from export.graphs.encoders.attention import fault_of_attention, finish_attention, fuse_attention
from export.graphs.encoders.packed import convert_to_packed
from export.graphs.encoders.sequence_head import batched_head
from export.graphs.encoders.stand_in import agrees
from export.graphs.encoders.traced_attention import has_traced_attention, traced_attention
from export.graphs.graph import Graphs, share_weights
from export.graphs.optimize import default_level, optimize, supports
from export.graphs.slot_attention import ObstacleError
from export.parity.generation import fault_of_slots
from export.parity.samples import TEXTS
from export.quantization.outliers import outlier_matrices
from export.quantization.quantize import to_fp16, to_int4, to_int8
from export.tokenizers.tokenizer import ExportedTokenizer
from pipelines.errors import CheckpointError, ConfigurationError, first_line
from pipelines.runtime.artifact import ModelArtifact
from pipelines.tasks import TASKS

_TYPICAL = 12  # texts to find outliers with


@dataclass(frozen=True)
class Conversion:
    """The graphs in an artifact's folder, and what its manifest says of them."""

    graphs: Graphs
    cache: str
    optimization: str | None
    rows: str


def taken(alike: ModelArtifact, finished: Path) -> Conversion:
    """The graphs of another artifact; both names lead to one file where the file system can do that."""
    manifest = alike.manifest
    for name in manifest.graphs.values():
        for file in alike.path.glob(f"{name}*"):
            try:
                os.link(file, finished / file.name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(file, finished / file.name)
    graphs = {role: finished / name for role, name in manifest.graphs.items()}
    return Conversion(graphs, manifest.cache, manifest.optimization, manifest.rows)


def converted(
    args: ExportArgs,
    checkpoint: ResolvedCheckpoint,
    model: Any,
    tokenizer: Any,
    template: str | None,
    written: ExportedTokenizer,
    work: Path,
    finished: Path,
    progress: Progress,
) -> Conversion:
    """Convert, optimize and quantize, in `work`, and move the graphs into `finished`."""
    progress(f"converting {checkpoint.name} ({model.config.model_type}) to ONNX")
    is_packed = _may_be_packed(args) and _pack(model, work / "model.onnx")
    if is_packed:
        graphs, cache = {"model": work / "model.onnx"}, "plain"
    else:
        with batched_head(model, written.settings.pad_token_id):
            graphs, cache = _convert(args, model, work, progress)
    level = level_of(args, model.config.model_type, cache)
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
    graphs = {role: finished / graph.name for role, graph in graphs.items()}
    return Conversion(graphs, cache, level, "packed" if is_packed else "padded")


def _typical(tokenizer: Any, template: str | None, longest: int) -> list[list[int]]:
    """Typical inputs, at most `longest` tokens each."""
    prompts = [template.replace("{text}", text) if template else text for text in TEXTS[:_TYPICAL]]
    inputs = [tokenizer(prompt, add_special_tokens=template is None).input_ids for prompt in prompts]
    # A cut one keeps its end: heads may read it.
    return [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in inputs]


def _convert(args: ExportArgs, model: Any, work: Path, progress: Progress) -> tuple[Graphs, str]:
    """The graphs and their kind of KV cache: `slots` where the model generates and can have them, else `plain`.

    Says why a model that generates cannot have slots.
    """
    if not TASKS[args.task].generates:
        _need_slots(args, f"{model.config.model_type} has none for {args.task}")
        return _convert_encoder(args, model, work, progress), "plain"
    reason = _obstacle(args, model)
    if reason is None:
        graphs, reason = _with_slots(args, model, work)
        if reason is None:
            return graphs, "slots"
    _need_slots(args, reason)
    if not (plain := plain_exporter()).can(args.task, model.config):
        raise CheckpointError(f"{args.checkpoint} cannot be exported: {plain.lacks(model.config)}: {reason}")
    progress(f"answers will be decoded one by one: {reason}")
    return convert(model, args.task, work), "plain"


def _convert_encoder(args: ExportArgs, model: Any, work: Path, progress: Progress) -> Graphs:
    """The graph; for a CPU, attention is traced as operators where it can be and gives the same outputs."""
    if args.device == "cpu" and has_traced_attention(model):
        try:
            with traced_attention(model) as traced:
                graphs = convert(model, args.task, work)
            finish_attention(graphs["model"], traced.window, model.config.hidden_size)
            if (reason := fault_of_attention(graphs["model"], model)) is None:
                return graphs
        except Exception as error:  # of torch's exporter, of the model's own code, or of ONNX Runtime
            if isinstance(error, OSError) or full_disk(error) is not None:
                raise
            reason = first_line(error)
        progress(f"its attention is not fused: {reason}")
    return convert(model, args.task, work)


def _with_slots(args: ExportArgs, model: Any, work: Path) -> tuple[Graphs, str | None]:
    """The graphs with KV cache slots, and what is wrong with them."""
    try:
        graphs = convert(model, args.task, work, "slots")
    except ObstacleError as error:
        return {}, str(error)
    except Exception as error:  # of torch's exporter, or of the model's own code
        if isinstance(error, OSError) or full_disk(error) is not None:
            raise
        return {}, f"its graph with slots cannot be traced ({first_line(error)})"
    return graphs, fault_of_slots(model, graphs)


def _obstacle(args: ExportArgs, model: Any) -> str | None:
    """Which option keeps a model that generates from KV cache slots; None where it may have them."""
    if args.optimize:
        return f"the fusions of {args.optimize} do not know such a graph"
    if args.precision == "fp32" and args.device != "cpu":
        return "CUDA's attention over slots is for fp16"
    if not model.config.is_encoder_decoder:
        return None
    if args.precision == "int4":
        return f"{model.config.model_type} has none for {args.task}"
    if args.device == "tensorrt":
        return "the slots of encoder-decoders are for CPUs and CUDA"
    return None


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


def level_of(args: ExportArgs, architecture: str, cache: str) -> str | None:
    """The optimization level of the options, else the default where the optimizer supports the graph."""
    default = default_level(args.precision, args.device, generates=TASKS[args.task].generates)
    return args.optimize or (default if supports(architecture) and cache == "plain" else None)
