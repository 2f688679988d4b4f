"""Trace: a PyTorch module becomes an ONNX graph by running it once on an example."""

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
            custom_opsets={"com.microsoft": 1},
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
