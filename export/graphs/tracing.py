"""Contrib: an operator of ONNX Runtime's own in the trace of a PyTorch model."""

from collections.abc import Sequence
from typing import Any


def contrib(operator: str, inputs: Sequence[Any], like: Sequence[Any], **attributes: float) -> tuple[Any, ...]:
    """The outputs of com.microsoft's `operator`, one for each tensor of `like`, of whose shape and dtype it is.

    None in `inputs` is an optional input that is left out. Only the graph computes something: PyTorch sees `like`.
    """
    import torch

    class Contrib(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, outputs: int, *tensors: Any) -> tuple[Any, ...]:
            return tuple(one.clone() for one in tensors[:outputs])

        @staticmethod
        def symbolic(g: Any, outputs: int, *values: Any) -> Any:
            from torch.onnx import symbolic_helper

            left_out: Any = symbolic_helper._optional_input_placeholder_tensor
            given = [left_out(g) if one is None else one for one in values[outputs:]]
            names = {f"{name}_{'f' if isinstance(value, float) else 'i'}": value for name, value in attributes.items()}
            made = g.op(f"com.microsoft::{operator}", *given, outputs=outputs, **names)
            made = (made,) if outputs == 1 else made
            for output, one in zip(made, values, strict=False):
                output.setType(one.type())
            return tuple(made)

    traced: Any = Contrib
    made: tuple[Any, ...] = traced.apply(len(like), *like, *inputs)
    return made
