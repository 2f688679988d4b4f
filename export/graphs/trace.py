"""Trace: a PyTorch module becomes an ONNX graph by running it once on an example; operators of ONNX Runtime in it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoints.frameworks import exclusive

OPSET = 18


def trace(
    module: Any, example: Sequence[Any], graph: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> None:
    """Write the graph of `module`, run on `example`, in fp32.

    `inputs` and `outputs` name the tensors, those of nested lists one after the other, with the names of the axes whose
    lengths are not those of the example.
    """
    import torch

    with unlogged(), torch.no_grad():
        torch.onnx.export(
            module,
            tuple(example),
            str(graph),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: axes for name, axes in {**inputs, **outputs}.items() if axes},
            opset_version=OPSET,
            dynamo=False,
        )


@contextmanager
def unlogged() -> Iterator[None]:
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


def contrib(operator: str, inputs: Sequence[Any], like: Sequence[Any], **attributes: float) -> tuple[Any, ...]:
    """An operator of ONNX Runtime (domain com.microsoft) in a traced graph: one output for each tensor of `like`.

    An output has the shape and dtype of its tensor. None in `inputs` leaves an optional input out. PyTorch computes
    nothing and returns copies of `like`; only the graph runs the operator.
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
