"""Graphs by Optimum's exporter, which knows most architectures of transformers 4.

It exports encoders, and generators whose KV cache is an input and an output.
"""

from pathlib import Path
from typing import Any

from export.graphs.alibi import rounded_alibi
from export.graphs.graph import Graphs
from export.graphs.trace import unlogged
from pipelines.tasks import TASKS


class OptimumGraphs:
    name = "Optimum"

    def lacks(self, config: Any) -> str:
        return f"Optimum does not know the architecture {config.model_type!r}, and it cannot have KV cache slots"

    def can(self, task: str, config: Any) -> bool | None:
        import optimum.exporters.onnx.model_configs  # noqa: F401  (importing it registers the architectures)
        from optimum.exporters.tasks import TasksManager

        try:
            known = TasksManager.get_supported_tasks_for_model_type(
                config.model_type, "onnx", library_name="transformers"
            )
        except KeyError:
            return None
        return _optimum_task(task, config) in known

    def write(self, model: Any, task: str, folder: Path) -> Graphs:
        from optimum.exporters.onnx import onnx_export_from_model

        custom = _one_segment(model, task) if getattr(model.config, "type_vocab_size", 0) == 1 else None
        with unlogged(), rounded_alibi(model):
            onnx_export_from_model(
                model,
                folder,
                task=_optimum_task(task, model.config),
                custom_onnx_configs=custom,
                preprocessors=[],
                do_validation=False,
                no_post_process=True,  # merging and tying weights would hinder quantization: both come after it
                device="cpu",
            )
        if model.config.is_encoder_decoder and TASKS[task].generates:
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


def _optimum_task(task: str, config: Any) -> str:
    """Optimum's name of the graph: for a head without a decoder, the name of the first task here that has this head."""
    if not TASKS[task].generates:
        head = TASKS[task].head.auto_class
        return next(name for name, other in TASKS.items() if other.head.auto_class == head)
    return "text2text-generation-with-past" if config.is_encoder_decoder else "text-generation-with-past"
