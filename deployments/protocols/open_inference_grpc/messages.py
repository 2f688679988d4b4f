"""Messages of the gRPC form of the Open Inference Protocol: those that are served, by the names that clients know.

Field names, numbers and types are those of the specification (kserve/open-inference-protocol, Apache-2.0) and of its
extensions by Triton (repository, statistics, streams). They stand in a pool of their own: a process may also import the
messages of tritonclient or kserve, whose names are the same.
"""

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError

from pipelines.errors import InvalidInputError

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
SCHEMA = """
InferParameter: bool_param?=1:bool int64_param?=2:int64 string_param?=3:string double_param?=4:double
  uint64_param?=5:uint64
InferTensorContents: bool_contents*=1:bool int_contents*=2:int32 int64_contents*=3:int64 uint_contents*=4:uint32
  uint64_contents*=5:uint64 fp32_contents*=6:float fp64_contents*=7:double bytes_contents*=8:bytes
InferInputTensor: name=1:string datatype=2:string shape*=3:int64 parameters{}=4:InferParameter
  contents=5:InferTensorContents
InferRequestedOutputTensor: name=1:string parameters{}=2:InferParameter
InferOutputTensor: name=1:string datatype=2:string shape*=3:int64 parameters{}=4:InferParameter
  contents=5:InferTensorContents
ModelInferRequest: model_name=1:string model_version=2:string id=3:string parameters{}=4:InferParameter
  inputs*=5:InferInputTensor outputs*=6:InferRequestedOutputTensor raw_input_contents*=7:bytes
ModelInferResponse: model_name=1:string model_version=2:string id=3:string parameters{}=4:InferParameter
  outputs*=5:InferOutputTensor raw_output_contents*=6:bytes
ModelStreamInferResponse: error_message=1:string infer_response=2:ModelInferResponse
ServerLiveRequest:
ServerLiveResponse: live=1:bool
ServerReadyRequest:
ServerReadyResponse: ready=1:bool
ModelReadyRequest: name=1:string version=2:string
ModelReadyResponse: ready=1:bool
ServerMetadataRequest:
ServerMetadataResponse: name=1:string version=2:string extensions*=3:string
ModelMetadataRequest: name=1:string version=2:string
TensorMetadata: name=1:string datatype=2:string shape*=3:int64
ModelMetadataResponse: name=1:string versions*=2:string platform=3:string inputs*=4:TensorMetadata
  outputs*=5:TensorMetadata
RepositoryIndexRequest: repository_name=1:string ready=2:bool
ModelIndex: name=1:string version=2:string state=3:string reason=4:string
RepositoryIndexResponse: models*=1:ModelIndex
ModelStatisticsRequest: name=1:string version=2:string
StatisticDuration: count=1:uint64 ns=2:uint64
InferStatistics: success=1:StatisticDuration fail=2:StatisticDuration queue=3:StatisticDuration
  compute_input=4:StatisticDuration compute_infer=5:StatisticDuration compute_output=6:StatisticDuration
  cache_hit=7:StatisticDuration cache_miss=8:StatisticDuration
InferBatchStatistics: batch_size=1:uint64 compute_input=2:StatisticDuration compute_infer=3:StatisticDuration
  compute_output=4:StatisticDuration
ModelStatistics: name=1:string version=2:string last_inference=3:uint64 inference_count=4:uint64
  execution_count=5:uint64 inference_stats=6:InferStatistics batch_stats*=7:InferBatchStatistics
ModelStatisticsResponse: model_stats*=1:ModelStatistics
"""
"""`field=NUMBER:TYPE`; `*` repeats it, `{}` maps strings to it, and of the fields with `?` a message has one."""
_REPEATED, _OPTIONAL = FieldDescriptorProto.LABEL_REPEATED, FieldDescriptorProto.LABEL_OPTIONAL


def message(name: str) -> Any:
    """The class of a message, by its name in the specification."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def decoded(name: str, data: bytes) -> Any:
    """The message in `data`; raises InvalidInputError where there is none."""
    try:
        return message(name).FromString(data)
    except DecodeError:
        raise InvalidInputError(f"is no {name}; allowed: one in protobuf", ()) from None


def _described(name: str, fields: list[str]) -> DescriptorProto:
    described = DescriptorProto(name=name)
    for text in fields:
        field, _, of = text.partition("=")
        number, _, kind = of.partition(":")
        added = described.field.add(name=field.rstrip("*?{}"), number=int(number), label=_OPTIONAL)
        if field.endswith("{}"):
            entry = described.nested_type.add(name="".join(map(str.title, added.name.split("_"))) + "Entry")
            entry.options.map_entry = True
            _set_type(entry.field.add(name="key", number=1, label=_OPTIONAL), "string")
            _set_type(entry.field.add(name="value", number=2, label=_OPTIONAL), kind)
            kind = f"{name}.{entry.name}"
        if field.endswith(("*", "{}")):
            added.label = _REPEATED
        if field.endswith("?"):
            added.oneof_index = 0
        _set_type(added, kind)
    if any("?" in text for text in fields):
        described.oneof_decl.add(name="parameter_choice")
    return described


def _set_type(field: FieldDescriptorProto, kind: str) -> None:
    if kind[0].isupper():
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


def _pool() -> Any:
    file = FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    for text in SCHEMA.replace("\n  ", " ").strip().splitlines():
        name, _, fields = text.partition(":")
        file.message_type.append(_described(name, fields.split()))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _pool()
