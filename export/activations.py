"""Activations: the inputs of products, in eight bits as they come, and their products scaled back."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class OneScale:
    """Activations in eight bits, with one scale and zero point for a whole tensor."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def quantize(self, name: str) -> Iterator[Any]:
        """The nodes that make them, where nothing did yet."""
        from onnx import helper

        if name not in self.seen:
            self.seen.add(name)
            made = [f"{name}_{part}" for part in ("quantized", "scale", "zero_point")]
            yield helper.make_node("DynamicQuantizeLinear", [name], made, f"{name}_QuantizeLinear")

    def multiply(self, name: str, matrix: tuple[str, str, str], output: str) -> Iterator[Any]:
        """The nodes of a product, scaled back to float; a matrix is int8 (in, out), its scales and zero points (out,).

        ONNX Runtime makes them one when it loads the graph.
        """
        from onnx import helper

        values, scales, zero_points = matrix
        integer = f"{output}_integer"
        factors = [values, f"{name}_zero_point", zero_points]
        yield helper.make_node("MatMulInteger", [f"{name}_quantized", *factors], [integer], f"{output}_quant")
        yield helper.make_node("Cast", [integer], [f"{integer}_cast"], f"{output}_cast", to=1)
        yield helper.make_node("Mul", [f"{name}_scale", scales], [f"{output}_factor"], f"{output}_scales_mul")
        yield helper.make_node("Mul", [f"{integer}_cast", f"{output}_factor"], [output], f"{output}_output_mul")


class TokenScales(OneScale):
    """Activations in eight bits, with one scale for each token; the zero point is in the middle."""

    def __init__(self, constants: dict[str, np.ndarray]) -> None:
        """Adds to the `constants` of the graph what its nodes need."""
        super().__init__()
        constants["token_axis"] = np.asarray([-1])
        constants["token_zero"] = np.asarray(128, np.uint8)
        for name, value in (("range", 127), ("one", 1), ("least", 1e-10)):
            constants[f"token_{name}"] = np.asarray(value, np.float32)

    def quantize(self, name: str) -> Iterator[Any]:
        from onnx import helper

        if name in self.seen:
            return
        self.seen.add(name)
        for operator, inputs, output, attributes in (
            ("Abs", [name], "absolute", {}),
            ("ReduceMax", [f"{name}_absolute", "token_axis"], "largest", {"keepdims": 1}),
            ("Max", [f"{name}_largest", "token_least"], "divisor", {}),  # a token of zeros stays one
            ("Div", ["token_range", f"{name}_divisor"], "factor", {}),
            ("Mul", [name, f"{name}_factor"], "scaled", {}),
            ("QuantizeLinear", [f"{name}_scaled", "token_one", "token_zero"], "quantized", {}),
        ):
            made = f"{name}_{output}"
            yield helper.make_node(operator, inputs, [made], made, **attributes)

    def multiply(self, name: str, matrix: tuple[str, str, str], output: str) -> Iterator[Any]:
        from onnx import helper

        values, scales, zero_points = matrix
        factors = [values, "token_one", scales, "token_zero", zero_points]
        product = f"{output}_product"
        yield helper.make_node(
            "MatMulIntegerToFloat",
            [f"{name}_quantized", *factors],
            [product],
            f"{output}_quant",
            domain="com.microsoft",
        )
        yield helper.make_node("Div", [product, f"{name}_factor"], [output], f"{output}_output_div")
