"""Messages: on the wire they are those of the published clients, whose own classes are the oracle."""

import pytest
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import service_pb2

from deployments.protocols.open_inference_grpc.frames import first, framed, only
from deployments.protocols.open_inference_grpc.messages import SCHEMA, message
from pipelines.errors import InvalidInputError

NAMES = [line.partition(":")[0] for line in SCHEMA.strip().splitlines() if not line.startswith(" ")]
SERVED = [
    f"{call}{end}"
    for call in (
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        "ModelInfer",
        "ModelStatistics",
        "RepositoryIndex",
    )
    for end in ("Request", "Response")
] + ["ModelStreamInferResponse"]


def wire(descriptor: Descriptor, seen: tuple[str, ...] = ()) -> object:
    """What a message is on the wire: the fields by number, and theirs."""
    if descriptor.name in seen:
        return descriptor.name
    return {
        field.number: (
            field.name,
            field.type,
            field.is_repeated,
            None if field.message_type is None else wire(field.message_type, (*seen, descriptor.name)),
        )
        for field in descriptor.fields
        if field.name not in ("memory_usage", "response_stats")  # of Triton's statistics: never sent
    }


@pytest.mark.parametrize("name", SERVED)
def test_a_message_has_the_fields_that_clients_know(name: str) -> None:
    assert wire(message(name).DESCRIPTOR) == wire(getattr(service_pb2, name).DESCRIPTOR)


def test_every_message_belongs_to_a_call() -> None:
    reached: set[str] = set()

    def visit(descriptor: Descriptor) -> None:
        if descriptor.name not in reached:
            reached.add(descriptor.name)
            for field in descriptor.fields:
                if field.message_type is not None:
                    visit(field.message_type)

    for name in SERVED:
        visit(message(name).DESCRIPTOR)
    assert set(NAMES) <= reached


def test_a_frame_is_read_as_it_comes() -> None:
    data = framed(b"abc") + framed(b"")

    assert [first(data[:length], 10) for length in range(8)] == [None] * 8
    assert first(data, 10) == (b"abc", 8)
    assert first(data[8:], 10) == (b"", 5)
    assert only(framed(b"abc")) == b"abc"
    for wrong, problem in (
        (data, "5 bytes behind its message"),
        (data[:6], "ends inside its message"),
        (b"\x01" + data[1:8], "compressed"),
        (b"", "ends inside its message"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            only(wrong)
