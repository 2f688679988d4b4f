"""Convert: a PyTorch model becomes fp32 ONNX graphs, with a KV cache in slots or by a plain exporter.

That is Optimum's beside transformers 4, and one of our own beside transformers 5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from checkpoints.checkpoint import ResolvedCheckpoint, untrained
from checkpoints.generations import OPTIMUM, exporter_here
from checkpoints.heads import ENCODER_DECODER, auto_class, fits
from export.graphs.graph import Graphs, save
from export.graphs.optimum_graphs import OptimumGraphs
from export.graphs.own_graphs import OwnGraphs
from export.graphs.seq2seq_slot_graph import convert_seq2seq_to_slots
from export.graphs.slot_graph import convert_to_slots
from pipelines.errors import CheckpointError
from pipelines.tasks import TASKS


class PlainExporter(Protocol):
    """Graphs without KV cache slots; `name` for messages."""

    name: str

    def lacks(self, config: Any) -> str:
        """The beginning of why a generator cannot be exported that it cannot export, and that cannot have slots."""

    def can(self, task: str, config: Any) -> bool | None:
        """Whether it knows the architecture with the head of a task; None where it does not know it at all."""

    def write(self, model: Any, task: str, folder: Path) -> Graphs:
        """Write the graphs into `folder`, fp32."""


def plain_exporter() -> PlainExporter:
    """The one that goes with the transformers of this process."""
    return OptimumGraphs() if exporter_here() == OPTIMUM else OwnGraphs()


def check_task(checkpoint: ResolvedCheckpoint, task: str, *, allow_untrained_head: bool = False) -> None:
    """Raises CheckpointError where the architecture cannot do `task`, or was trained with the head of another one."""
    config, name = checkpoint.config, checkpoint.name
    if not fits(task, config):
        does = " or ".join(other.name for other in TASKS.values() if other.head.auto_class == ENCODER_DECODER)
        raise CheckpointError(f"{name} is an encoder-decoder ({config.model_type}): it does {does}")
    if not _may_do(task, config):
        possible = [other for other in TASKS if _may_do(other, config)]
        if not possible and not any(_has_head(other, config) for other in TASKS):
            raise CheckpointError(f"{name} is a {config.model_type} checkpoint, which does none of the tasks here")
        if not possible:
            raise CheckpointError(
                f"{name}: {plain_exporter().name} cannot export the architecture {config.model_type!r}"
            )
        does = " or ".join(possible)
        raise CheckpointError(f"{name} is a {config.model_type} checkpoint, which cannot do {task}; it does {does}")
    if (
        getattr(config, "attention_type", None) == "block_sparse"
    ):  # a trace keeps what short texts get: all attend to all
        raise CheckpointError(
            f"{name} attends to random blocks of long texts ({config.model_type}), which a graph cannot; with "
            '"attention_type": "original_full" in its config.json, every token attends to all'
        )
    trained_for = (config.architectures or [""])[0]
    if trained_for and not trained_for.endswith(TASKS[task].head.classes) and not allow_untrained_head:
        raise untrained(name, task, f"it was saved as {trained_for}")


def _may_do(task: str, config: Any) -> bool:
    """Whether an export may succeed. A generator that the exporter does not know at all may have a slot graph."""
    if not fits(task, config) or not _has_head(task, config):
        return False
    known = plain_exporter().can(task, config)
    return TASKS[task].generates if known is None else known


def _has_head(task: str, config: Any) -> bool:
    """Whether transformers has a model with the task's head for a config of this type."""
    import transformers

    return type(config) in getattr(transformers, auto_class(task, config))._model_mapping


def convert(model: Any, task: str, folder: Path, cache: str = "plain") -> Graphs:
    """Write the graphs of `model` into `folder`; `cache` (`plain` or `slots`) is that of the manifest.

    Raises ObstacleError (of export.graphs.slot_attention) where it cannot have slots.
    """
    if cache == "slots" and model.config.is_encoder_decoder:
        graphs = {role: folder / f"{role}_model.onnx" for role in ("encoder", "decoder")}
        convert_seq2seq_to_slots(model, **graphs)
        return graphs
    if cache == "slots":
        convert_to_slots(model, folder / "model.onnx")
        return {"model": folder / "model.onnx"}
    return plain_exporter().write(model, task, folder)


def merge(graphs: Graphs, folder: Path) -> Graphs:
    """One decoder out of two, which share their weights; graphs without a second one stay as they are."""
    if "decoder_with_past" not in graphs:
        return graphs
    from optimum.onnx import merge_decoders

    merged = folder / "decoder_model_merged.onnx"
    merge_decoders(graphs["decoder"], graphs["decoder_with_past"], save_path=merged, strict=False)
    return {"encoder": graphs["encoder"], "decoder": merged}


def map_to_unknown(graph: Path, outside: int, unknown: int) -> None:
    """Let the graph read every id of `outside` or above as `unknown` (see export.tokenizers.pieces)."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(graph)
    for node in model.graph.node:
        node.input[:] = ["known_input_ids" if name == "input_ids" else name for name in node.input]
    constants = {"first_outside_id": outside, "unknown_id": unknown}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in constants.items()
    )
    model.graph.node.insert(0, helper.make_node("Less", ["input_ids", "first_outside_id"], ["is_known"]))
    model.graph.node.insert(1, helper.make_node("Where", ["is_known", "input_ids", "unknown_id"], ["known_input_ids"]))
    save(model, graph)


def opset(graphs: Mapping[str, Path]) -> int:
    """The ONNX opset that the graphs use."""
    import onnx

    graph = onnx.load(next(iter(graphs.values())), load_external_data=False)
    return next(int(one.version) for one in graph.opset_import if one.domain in ("", "ai.onnx"))
