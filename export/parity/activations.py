"""Activations: how large the values become that a PyTorch model computes, for graphs in fp16, which ends at 65,504.

A CPU runs an fp16 graph in fp32 between its casts, so comparing outputs there does not show an overflow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.errors import CheckpointError
from pipelines.runtime.artifact import Manifest

LARGEST_FP16 = 65504.0


class Activations:
    """`largest` is the largest absolute value that a module gave, or a module without others in it read, in fp32."""

    def __init__(self) -> None:
        self.largest = 0.0

    @contextmanager
    def observed(self, model: Any) -> Iterator[None]:
        """Within it, what `model` computes counts. Masks do not: their numbers are the least that there are."""
        import torch

        def gave(_module: Any, _inputs: Any, output: Any) -> None:
            self._note(output)

        def read(_module: Any, inputs: tuple[Any, ...]) -> None:
            for one in inputs:
                self._note(one)

        handles = []
        for module in model.modules():
            handles.append(module.register_forward_hook(gave))
            if next(module.children(), None) is None and not isinstance(module, torch.nn.Softmax):
                handles.append(module.register_forward_pre_hook(read))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self, manifest: Manifest) -> None:
        """Raises CheckpointError where the artifact computes in fp16, and the values do not fit."""
        halves = manifest.precision == "fp16" or (manifest.precision == "int4" and manifest.device != "cpu")
        if halves and self.largest > LARGEST_FP16:
            raise CheckpointError(
                f"{manifest.source.checkpoint} does not fit in fp16: its activations reach {self.largest:.3g}, and "
                f"fp16 ends at {LARGEST_FP16:g}; export it as fp32"
            )

    def _note(self, values: Any) -> None:
        if hasattr(values, "is_floating_point") and values.is_floating_point() and values.numel():
            self.largest = max(self.largest, float(values.detach().abs().max()))
