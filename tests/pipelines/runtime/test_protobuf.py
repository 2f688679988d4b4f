"""Messages are read as Protocol Buffers' own library writes them."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pipelines.runtime.protobuf import fields, float32, head, integer, message, text
from pipelines.runtime.small_graph import Node, Port, vector


def model() -> ModelProto:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5, transB=1)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [300, None]) for name in "xy"]
    weight = numpy_helper.from_array(np.arange(600, dtype=np.float32).reshape(2, 300), "w")
    return helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:], [weight]))


def test_the_fields_of_a_message_are_found_and_add_up_to_it() -> None:
    content = memoryview(model().SerializeToString())
    found = list(fields(content))
    assert b"".join(whole for _, whole, _ in found) == bytes(content)
    (graph,) = [inner for number, _, inner in found if number == 7]
    (weight,) = [inner for number, _, inner in fields(graph) if number == 5]
    tensor = TensorProto.FromString(bytes(weight))
    assert (numpy_helper.to_array(tensor) == np.arange(600).reshape(2, 300)).all()


def test_what_is_written_is_read_by_the_library() -> None:
    node = Node("FusedMatMul", ["a", "b"], ["c"], {"alpha": 2.0, "transB": 1, "perm": [1, -1]}, "com.microsoft")
    expected = helper.make_node(
        "FusedMatMul", ["a", "b"], ["c"], domain="com.microsoft", alpha=2.0, transB=1, perm=[1, -1]
    )
    written = type(expected).FromString(node.proto())
    assert sorted(written.attribute, key=str) == sorted(expected.attribute, key=str)
    assert (written.domain, list(written.input), list(written.output)) == ("com.microsoft", ["a", "b"], ["c"])
    tensor = TensorProto.FromString(vector("shape", [-1, 70_000]))
    assert (tensor.name, numpy_helper.to_array(tensor).tolist()) == ("shape", [-1, 70_000])
    port = type(helper.make_tensor_value_info("x", 1, [1])).FromString(Port("x", np.dtype(np.float32), 2).proto())
    assert (port.name, port.type.tensor_type.elem_type, len(port.type.tensor_type.shape.dim)) == ("x", 1, 2)


@pytest.mark.parametrize("content", [b"\x0a\x05ab", b"\x0b", b"\x80" * 12, head(1, 2**40), text(1, "a")[:-1]])
def test_what_is_no_message_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        list(fields(memoryview(content)))


def test_numbers_are_skipped_whole() -> None:
    content = integer(1, -5) + float32(2, 1.5) + message(3, b"xyz")
    assert [(number, bytes(inner)) for number, _, inner in fields(memoryview(content))] == [
        (1, b""),
        (2, b""),
        (3, b"xyz"),
    ]
