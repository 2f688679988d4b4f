"""Activations: the nodes that quantize the input of a MatMul to int8 at run time, and that scale its output back."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class OneScale:
    """int8 activations with one scale and zero point per tensor."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def product(self, name: str, matrix: str, scales: str, zero_points: str, output: str) -> Iterator[Any]:
        """The nodes of a MatMul with an int8 matrix (in, out), whose scales and zero points are (out,).

        onnxruntime fuses them into one node when it loads the graph.
        """
        from onnx import helper

        yield from self._quantize(name)
        integer, inputs = f"{output}_integer", [f"{name}_quantized", matrix, f"{name}_zero_point", zero_points]
        yield helper.make_node("MatMulInteger", inputs, [integer], f"{output}_quant")
        yield helper.make_node("Cast", [integer], [f"{integer}_cast"], f"{output}_cast", to=1)
        yield helper.make_node("Mul", [f"{name}_scale", scales], [f"{output}_factor"], f"{output}_scales_mul")
        yield helper.make_node("Mul", [f"{integer}_cast", f"{output}_factor"], [output], f"{output}_output_mul")

    def _quantize(self, name: str) -> Iterator[Any]:
        """The nodes that quantize an activation; none where an earlier MatMul has them already."""
        from onnx import helper

        if name not in self.seen:
            self.seen.add(name)
            made = [f"{name}_{part}" for part in ("quantized", "scale", "zero_point")]
            yield helper.make_node("DynamicQuantizeLinear", [name], made, f"{name}_QuantizeLinear")


class TokenScales(OneScale):
    """int8 activations with one scale per token and a zero point of 128.

    Each token is divided by its largest value before the MatMul, and the output multiplied by it. In between all tokens
    have one scale, as onnxruntime's MatMulIntegerToFloat needs it.
    """

    def __init__(self, constants: dict[str, np.ndarray]) -> None:
        """Adds the constants of the nodes to those of the graph."""
        super().__init__()
        constants["token_axis"] = np.asarray([-1])
        constants["token_zero"] = np.asarray(128, np.uint8)
        for name, value in (("step", 1 / 127), ("least", 1e-10)):
            constants[f"token_{name}"] = np.asarray(value, np.float32)

    def product(self, name: str, matrix: str, scales: str, zero_points: str, output: str) -> Iterator[Any]:
        from onnx import helper

        yield from self._quantize(name)
        inputs = [
            f"{name}_quantized",
            matrix,
            "token_step",
            scales,
            "token_zero",
        ]  # the matrix is symmetric: its zero point is 0
        unit = f"{output}_unit"
        yield helper.make_node("MatMulIntegerToFloat", inputs, [unit], f"{output}_quant", domain="com.microsoft")
        yield helper.make_node("Mul", [unit, f"{name}_divisor"], [output], f"{output}_output_mul")

    def _quantize(self, name: str) -> Iterator[Any]:
        from onnx import helper

        if name in self.seen:
            return
        self.seen.add(name)
        for operator, inputs, output, attributes in (
            ("Abs", [name], "absolute", {}),
            ("ReduceMax", [f"{name}_absolute", "token_axis"], "largest", {"keepdims": 1}),
            ("Max", [f"{name}_largest", "token_least"], "divisor", {}),  # a token of zeros stays zero
            ("Div", [name, f"{name}_divisor"], "of_one", {}),
            ("QuantizeLinear", [f"{name}_of_one", "token_step", "token_zero"], "quantized", {}),
        ):
            made = f"{name}_{output}"
            yield helper.make_node(operator, inputs, [made], made, **attributes)
