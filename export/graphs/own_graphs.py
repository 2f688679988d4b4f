"""Graphs of encoders without Optimum, whose exporter knows transformers 4 only: the model's own code, traced.

input_ids       (rows, tokens)   int64
attention_mask  (rows, tokens)   int64    1 for a token, 0 for padding
token_type_ids  (rows, tokens)   int64    where the model tells two texts apart
-> logits       (rows, labels) or (rows, tokens, labels)
   start_logits, end_logits      (rows, tokens), of question answering
"""

import inspect
from pathlib import Path
from typing import Any

from checkpoints.generations import ONLY_5
from export.graphs.graph import Graphs
from export.graphs.trace import trace
from pipelines.tasks import TASKS

_ROWS, _TOKENS, _PADDING = 2, 7, 2  # of the example


class OwnGraphs:
    name = "the exporter transformers5"

    def lacks(self, config: Any) -> str:
        elsewhere = "" if config.model_type in ONLY_5.split() else " (the exporter optimum may do without)"
        return f"{self.name} decodes in KV cache slots{elsewhere}, which {config.model_type} cannot have"

    def can(self, task: str, config: Any) -> bool | None:
        return None if TASKS[task].generates else True

    def write(self, model: Any, task: str, folder: Path) -> Graphs:
        import torch

        ids = torch.arange(3, 3 + _ROWS * _TOKENS).reshape(_ROWS, _TOKENS) % model.config.vocab_size
        mask = torch.ones_like(ids)
        mask[0, -_PADDING:] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        takes = inspect.signature(model.forward).parameters
        if "token_type_ids" in takes and getattr(model.config, "type_vocab_size", 0) > 1:
            given["token_type_ids"] = torch.zeros_like(ids)
        with torch.no_grad():
            made = model(**given)
        outputs = [name for name in ("logits", "start_logits", "end_logits") if name in made]
        axes = {0: "rows", 1: "tokens"}
        graph = folder / "model.onnx"
        trace(
            _encoder(model, list(given), outputs),
            list(given.values()),
            graph,
            dict.fromkeys(given, axes),
            {name: axes if made[name].shape[1:2] == ids.shape[1:] else {0: "rows"} for name in outputs},
        )
        return {"model": graph}


def _encoder(model: Any, inputs: list[str], outputs: list[str]) -> Any:
    """The module to trace: the model with its inputs by place, and with nothing but its logits."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> tuple[Any, ...]:
            made = self.model(**dict(zip(inputs, given, strict=True)))
            return tuple(made[name] for name in outputs)

    return Encoder().eval()
