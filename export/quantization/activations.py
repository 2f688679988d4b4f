"""Activations: the inputs of products, in eight bits as they come, and their products scaled back."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class OneScale:
    """Activations in eight bits, with one scale and zero point for a whole tensor."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def product(self, name: str, matrix: str, scales: str, zero_points: str, output: str) -> Iterator[Any]:
        """The nodes of a product with an int8 matrix (in, out), whose scales and zero points are (out,).

        onnxruntime fuses them all into one when it loads the graph.
        """
        from onnx import helper

        yield from self._quantize(name)
        integer, inputs = f"{output}_integer", [f"{name}_quantized", matrix, f"{name}_zero_point", zero_points]
        yield helper.make_node("MatMulInteger", inputs, [integer], f"{output}_quant")
        yield helper.make_node("Cast", [integer], [f"{integer}_cast"], f"{output}_cast", to=1)
        yield helper.make_node("Mul", [f"{name}_scale", scales], [f"{output}_factor"], f"{output}_scales_mul")
        yield helper.make_node("Mul", [f"{integer}_cast", f"{output}_factor"], [output], f"{output}_output_mul")

    def _quantize(self, name: str) -> Iterator[Any]:
        """The nodes from an activation to eight bits, where nothing made them yet."""
        from onnx import helper

        if name not in self.seen:
            self.seen.add(name)
            made = [f"{name}_{part}" for part in ("quantized", "scale", "zero_point")]
            yield helper.make_node("DynamicQuantizeLinear", [name], made, f"{name}_QuantizeLinear")


class TokenScales(OneScale):
    """Activations in eight bits, with one scale for each token; the zero point is in the middle.

    A token is divided by its largest value before, and the product multiplied by it: in between all have one scale,
    which onnxruntime's own operator for such products can take.
    """

    def __init__(self, constants: dict[str, np.ndarray]) -> None:
        """Adds to the `constants` of the graph what its nodes need."""
        super().__init__()
        constants["token_axis"] = np.asarray([-1])
        constants["token_zero"] = np.asarray(128, np.uint8)
        for name, value in (("step", 1 / 127), ("least", 1e-10)):
            constants[f"token_{name}"] = np.asarray(value, np.float32)

    def product(self, name: str, matrix: str, scales: str, zero_points: str, output: str) -> Iterator[Any]:
        from onnx import helper

        yield from self._quantize(name)
        inputs = [f"{name}_quantized", matrix, "token_step", scales, "token_zero"]  # the matrix' zero is in the middle
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
            ("Max", [f"{name}_largest", "token_least"], "divisor", {}),  # a token of zeros stays one
            ("Div", [name, f"{name}_divisor"], "of_one", {}),
            ("QuantizeLinear", [f"{name}_of_one", "token_step", "token_zero"], "quantized", {}),
        ):
            made = f"{name}_{output}"
            yield helper.make_node(operator, inputs, [made], made, **attributes)
