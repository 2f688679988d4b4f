"""The operators of a graph."""

from collections.abc import Iterator
from typing import Any


def operators(graph: Any) -> Iterator[str]:
    """Those of its branches, too."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)
