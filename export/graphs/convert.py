"""Convert: a PyTorch model becomes fp32 ONNX graphs, with a KV cache in slots or by Optimum's exporter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import ResolvedCheckpoint, untrained
from checkpoints.frameworks import exclusive
from checkpoints.heads import ENCODER_DECODER, fits
from export.graphs.graph import save
from export.graphs.seq2seq_slot_graph import convert_seq2seq_to_slots
from export.graphs.slot_graph import convert_to_slots
from pipelines.errors import CheckpointError
from pipelines.tasks import TASKS

Graphs = dict[str, Path]
"""ONNX file by role: `model`, or `encoder` and `decoder`; of Optimum's two, `decoder` runs the first step and
`decoder_with_past` the others."""


def check_task(checkpoint: ResolvedCheckpoint, task: str, *, allow_untrained_head: bool = False) -> None:
    """Raises CheckpointError where the architecture cannot do `task`, or was trained with the head of another one."""
    from optimum.exporters.tasks import TasksManager
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config, name = checkpoint.config, checkpoint.name
    if not fits(task, config):
        does = " or ".join(other.name for other in TASKS.values() if other.head.auto_class == ENCODER_DECODER)
        raise CheckpointError(f"{name} is an encoder-decoder ({config.model_type}): it does {does}")
    if not optimum_exports(config):
        if TASKS[task].generates and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return  # it may have a slot graph, which Optimum has no part in
        raise CheckpointError(f"{name}: Optimum cannot export the architecture {config.model_type!r}")
    supported = TasksManager.get_supported_tasks_for_model_type(config.model_type, "onnx", library_name="transformers")
    if _optimum_task(task, config) not in supported:
        possible = [other for other in TASKS if _optimum_task(other, config) in supported and fits(other, config)]
        does = " or ".join(possible) if possible else "none of the tasks here"
        raise CheckpointError(f"{name} is a {config.model_type} checkpoint, which cannot do {task}; it does {does}")
    trained_for = (config.architectures or [""])[0]
    if trained_for and not trained_for.endswith(TASKS[task].head.classes) and not allow_untrained_head:
        raise untrained(name, task, f"it was saved as {trained_for}")


def optimum_exports(config: Any) -> bool:
    """Whether Optimum's exporter knows the architecture."""
    import optimum.exporters.onnx.model_configs  # noqa: F401  (importing it registers the architectures)
    from optimum.exporters.tasks import TasksManager

    try:
        TasksManager.get_supported_tasks_for_model_type(config.model_type, "onnx", library_name="transformers")
    except KeyError:
        return False
    return True


def convert(model: Any, task: str, folder: Path, cache: str = "plain") -> Graphs:
    """Write the graphs of `model` into `folder`; `cache` (`plain` or `slots`) is that of the manifest."""
    with _unlogged():
        return _written(model, task, folder, cache)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch's exporter from writing to stdout: it turns its own log on, with the whole graph of what it cannot
    export, from C++.
    """
    import torch

    functions: Any = torch._C
    with exclusive:
        log = functions._jit_onnx_log
        functions._jit_onnx_log = lambda *_values: None
        try:
            yield
        finally:
            functions._jit_onnx_log = log


def _written(model: Any, task: str, folder: Path, cache: str) -> Graphs:
    if cache == "slots" and model.config.is_encoder_decoder:
        graphs = {role: folder / f"{role}_model.onnx" for role in ("encoder", "decoder")}
        convert_seq2seq_to_slots(model, **graphs)
        return graphs
    if cache == "slots":
        convert_to_slots(model, folder / "model.onnx")
        return {"model": folder / "model.onnx"}
    from optimum.exporters.onnx import onnx_export_from_model

    onnx_export_from_model(
        model,
        folder,
        task=_optimum_task(task, model.config),
        custom_onnx_configs=_one_segment(model, task) if getattr(model.config, "type_vocab_size", 0) == 1 else None,
        preprocessors=[],
        do_validation=False,
        no_post_process=True,  # merging decoders and tying weights would hinder quantization: both come after it
        device="cpu",
    )
    if model.config.is_encoder_decoder:
        model.get_encoder().config.use_cache = False  # the exporter sets it for every part; T5's encoder then fails
        roles = ("encoder", "decoder", "decoder_with_past")
        return {role: folder / f"{role}_model.onnx" for role in roles}
    return {"model": folder / "model.onnx"}


def _one_segment(model: Any, task: str) -> dict[str, Any]:
    """Example inputs with token_type_ids of 0 alone: Optimum's have two segments, this model knows one."""
    from optimum.exporters.tasks import TasksManager
    from optimum.utils import DummyTextInputGenerator

    class OneSegment(DummyTextInputGenerator):  # type: ignore[misc]
        def generate(self, input_name: str, *arguments: Any, **options: Any) -> Any:
            example = super().generate(input_name, *arguments, **options)
            return example * 0 if input_name == "token_type_ids" else example

    optimum_task = _optimum_task(task, model.config)
    config = TasksManager.get_exporter_config_constructor("onnx", model=model, task=optimum_task)(model.config)
    config.DUMMY_INPUT_GENERATOR_CLASSES = (OneSegment,)
    return {"model": config}


def merge(graphs: Graphs, folder: Path) -> Graphs:
    """One decoder out of two, which share their weights; graphs without a second one stay as they are."""
    from optimum.onnx import merge_decoders

    if "decoder_with_past" not in graphs:
        return graphs
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


def _optimum_task(task: str, config: Any) -> str:
    """Optimum's name of the graph: for a head without a decoder, the name of the first task here that has this head."""
    if not TASKS[task].generates:
        head = TASKS[task].head.auto_class
        return next(name for name, other in TASKS.items() if other.head.auto_class == head)
    return "text2text-generation-with-past" if config.is_encoder_decoder else "text-generation-with-past"
