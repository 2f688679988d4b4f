"""KServe's own client, unmodified, over gRPC and REST, in an environment of its own: its pins cannot be beside ours.

It runs there, in a process that this module is, too:

python -m tests.kserve_client < calls.json > outcomes.json
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.inside import ROOT, installed

GRPC, REST = "grpc", "rest"


@dataclass(frozen=True)
class Call:
    """A method of one of its clients; over gRPC `headers` are metadata. `infer` sends `texts` as a tensor."""

    over: str
    url: str
    method: str
    model: str | None = None
    texts: Sequence[Any] = ()
    tensor: str = "args"
    datatype: str = "BYTES"
    binary: bool = True
    parameters: dict[str, Any] | None = None
    id: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """Of the client."""


def outcomes(calls: Sequence[Call]) -> list[Any]:
    """What each call returns, or `{"error", "code"}`: the status of gRPC or of HTTP."""
    process = subprocess.run(
        [str(installed("kserve")), "-m", "tests.kserve_client"],
        input=json.dumps([asdict(one) for one in calls]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found: list[Any] = json.loads(process.stdout.splitlines()[-1])
    return found


async def _all(calls: Sequence[Call]) -> list[Any]:
    return [await (_over_grpc(one) if one.over == GRPC else _over_rest(one)) for one in calls]


async def _over_grpc(call: Call) -> Any:
    import grpc
    from kserve import InferenceGRPCClient
    from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelMetadataRequest, ServerMetadataRequest

    headers = list(call.headers.items())
    async with InferenceGRPCClient(call.url, **call.options) as client:
        try:
            if call.method == "infer":
                return _answer(await client.infer(_request(call), headers=headers))
            if call.method == "is_model_ready":
                return await client.is_model_ready(call.model, headers=headers)
            if call.method == "metadata":  # it has no method for these, but the messages
                server = await client._client_stub.ServerMetadata(ServerMetadataRequest(), metadata=headers)
                model = await client._client_stub.ModelMetadata(ModelMetadataRequest(name=call.model), metadata=headers)
                return [server.name, model.name, [one.name for one in model.inputs]]
            return await getattr(client, call.method)(headers=headers)
        except grpc.RpcError as error:
            return {"code": error.code().name, "error": error.details()}


async def _over_rest(call: Call) -> Any:
    import httpx
    from kserve import InferenceRESTClient, RESTConfig

    client = InferenceRESTClient(RESTConfig(protocol="v2", **call.options))
    try:
        if call.method == "infer":
            return _answer(await client.infer(call.url, _request(call), call.model, headers=dict(call.headers)))
        if call.method == "is_model_ready":
            return await client.is_model_ready(call.url, call.model, headers=call.headers)
        return await getattr(client, call.method)(call.url, headers=call.headers)
    except httpx.HTTPStatusError as error:
        return {"code": error.response.status_code, "error": str(error)}
    finally:
        await client.close()


def _request(call: Call) -> Any:
    import numpy as np
    from kserve import InferInput, InferRequest

    values = np.array(call.texts, object if call.datatype == "BYTES" else np.float32)
    tensor = InferInput(call.tensor, list(values.shape), call.datatype)
    tensor.set_data_from_numpy(values, binary_data=call.binary)
    return InferRequest(call.model, [tensor], request_id=call.id, parameters=call.parameters)


def _answer(response: Any) -> Any:
    (output,) = response.outputs
    texts = output.as_numpy().reshape(-1).tolist()
    return {
        "id": response.id,
        "model": response.model_name,
        "output": [output.name, output.datatype, list(output.shape)],
        "documents": [json.loads(one) for one in texts],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_all([Call(**one) for one in json.load(sys.stdin)]))))
