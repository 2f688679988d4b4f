"""Point: where a slot graph takes adapters, as export/graphs/adapter_points.py notes it in the metadata of the file."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import ArtifactError, InvalidInputError
from pipelines.schema import decode, encode

METADATA = "sextet.adapter_points"
"""The key of the points in the metadata of an ONNX file."""


@dataclass(frozen=True)
class Part:
    """A linear layer of the model, by its name in transformers: `width` channels of what a point makes."""

    layer: str
    width: int


@dataclass(frozen=True)
class Point:
    """A product with the weights of linear layers of one input, side by side.

    It reads the tensor `reads`, whose last axis has `width` channels, and `makes` one, whose last axis has those of
    all `parts` in their order. With three `axes` they are (rows, tokens, channels), with two (rows x tokens, channels).
    """

    reads: str
    makes: str
    width: int
    axes: int
    parts: tuple[Part, ...]


def as_json(points: Sequence[Point]) -> str:
    """The value of METADATA."""
    return encode(list(points)).decode()


def from_json(text: str) -> list[Point]:
    """Raises ArtifactError for what is no list of points."""
    try:
        points: list[Point] = decode(text.encode(), list[Point])
    except InvalidInputError as error:
        raise ArtifactError(f"its adapter points cannot be read ({error}); export it again") from None
    return points
