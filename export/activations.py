"""Activations: the inputs of products, in eight bits as they come, and their products scaled back."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class OneScale:
    """Activations in eight bits, with one scale and zero point for a whole tensor."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def quantized(self, name: str) -> tuple[str, str]:
        """What an activation, and its zero point, are called in eight bits."""
        return f"{name}_quantized", f"{name}_zero_point"

    def quantize(self, name: str) -> Iterator[Any]:
        """The nodes that make them, where nothing did yet."""
        from onnx import helper

        if name not in self.seen:
            self.seen.add(name)
            made = [f"{name}_{part}" for part in ("quantized", "scale", "zero_point")]
            yield helper.make_node("DynamicQuantizeLinear", [name], made, f"{name}_QuantizeLinear")

    def scale_back(self, name: str, product: str, scales: str, output: str) -> Iterator[Any]:
        """The nodes from a product of integers, cast to float, to what it stands for; `scales` are its channels'."""
        from onnx import helper

        yield helper.make_node("Mul", [f"{name}_scale", scales], [f"{output}_factor"], f"{output}_scales_mul")
        yield helper.make_node("Mul", [product, f"{output}_factor"], [output], f"{output}_output_mul")


class TokenScales(OneScale):
    """Activations in eight bits, with one scale for each token; the zero point is in the middle."""

    def __init__(self, constants: dict[str, np.ndarray]) -> None:
        """Adds to the `constants` of the graph what its nodes need."""
        super().__init__()
        constants["token_axis"] = np.asarray([-1])
        constants["token_zero"] = np.asarray(128, np.uint8)
        for name, value in (("range", 127), ("middle", 128), ("least", 1e-10)):
            constants[f"token_{name}"] = np.asarray(value, np.float32)

    def quantized(self, name: str) -> tuple[str, str]:
        return f"{name}_quantized", "token_zero"

    def quantize(self, name: str) -> Iterator[Any]:
        from onnx import TensorProto, helper

        if name in self.seen:
            return
        self.seen.add(name)
        for operator, inputs, output, attributes in (
            ("Abs", [name], "absolute", {}),
            ("ReduceMax", [f"{name}_absolute", "token_axis"], "largest", {"keepdims": 1}),
            ("Max", [f"{name}_largest", "token_least"], "divisor", {}),  # a token of zeros stays one
            ("Div", ["token_range", f"{name}_divisor"], "factor", {}),
            ("Mul", [name, f"{name}_factor"], "scaled", {}),
            ("Round", [f"{name}_scaled"], "rounded", {}),
            ("Add", [f"{name}_rounded", "token_middle"], "shifted", {}),
            ("Cast", [f"{name}_shifted"], "quantized", {"to": TensorProto.UINT8}),
        ):
            made = f"{name}_{output}"
            yield helper.make_node(operator, inputs, [made], made, **attributes)

    def scale_back(self, name: str, product: str, scales: str, output: str) -> Iterator[Any]:
        from onnx import helper

        yield helper.make_node("Mul", [product, scales], [f"{output}_channels"], f"{output}_scales_mul")
        yield helper.make_node("Div", [f"{output}_channels", f"{name}_factor"], [output], f"{output}_output_div")
