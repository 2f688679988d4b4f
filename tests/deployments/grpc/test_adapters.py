"""An adapter is asked for by its name over gRPC, and at the root over HTTP, without a redirect."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from deployments.cluster.ray_environment import spare_port
from deployments.ingress.config import IngressConfig
from deployments.ingress.keys import Key, add, new_key
from tests.deployments.grpc.served import Served, served, tensor
from tests.deployments.grpc.test_infer import documents
from tests.deployments.grpc.test_stream import streaming
from tests.lora import save_adapter

TASK, LARGE, NAME, OTHER = "text-generation", "text-generation.large", "pirate", "poet"
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
TEXT = "The river flows"


@pytest.fixture(scope="module")
def folders(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, base = tmp_path_factory.mktemp("adapters"), checkpoint("llama", TASK)
    return {name: str(save_adapter(base, folder / name, seed)) for seed, name in enumerate((NAME, OTHER), start=1)}


@pytest.fixture(scope="module")
def models(exported: Callable[..., Path]) -> dict[str, Path]:
    return {TASK: exported("llama", TASK), LARGE: exported("qwen2", TASK)}


@pytest.fixture(scope="module")
def cluster(
    models: dict[str, Path], folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Every request of the task that names no model is a share of `large`."""
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "traffic").write_text(f"{TASK} large 100\n", encoding="ascii")
    config = IngressConfig(grpc_port=spare_port(), traffic=str(folder / "traffic"))
    slots = {"slots": 3, "max_tokens": 200}
    with served(folder, models, config, adapters=folders, threads=1, slots=slots) as running:
        yield running


@pytest.fixture(scope="module")
def expected(cluster: Served) -> dict[str, str]:
    """What each answers at its own path."""
    with cluster.ingress.client() as client:
        body = {"inputs": TEXT, "parameters": GREEDY}
        paths = {TASK: "default", **{name: name for name in ("large", NAME, OTHER)}}
        answers = {name: client.post(f"/{TASK}/{path}", json=body).json() for name, path in paths.items()}
    found = {name: str(answer[0]["generated_text"]) for name, answer in answers.items()}
    assert len(set(found.values())) == len(found)
    return found


def test_a_message_finds_an_adapter_by_its_name(cluster: Served, expected: dict[str, str]) -> None:
    with triton.InferenceServerClient(cluster.address) as client:
        for name in (NAME, OTHER):
            result = client.infer(name, [tensor([TEXT])], parameters=GREEDY)
            assert documents(result)[0][0]["generated_text"] == expected[name]
            assert result.get_response().model_name == name
        with pytest.raises(InferenceServerException, match=f"no model nobody; allowed: {TASK}, large, {NAME}, {OTHER}"):
            client.infer("nobody", [tensor([TEXT])])


def test_one_stream_asks_the_base_and_its_adapters_and_no_other_model(
    cluster: Served, expected: dict[str, str]
) -> None:
    with streaming(cluster) as stream:
        for name in (NAME, OTHER, TASK, "large"):
            stream.ask(name, [TEXT], parameters=GREEDY, request_id=name)
        texts, errors = dict[str, str](), list[str]()
        while len(texts) + len(errors) < 4:
            result, error = stream.next()
            if error is not None:
                errors.append(str(error))
            elif (text := documents(result)[0]["generated_text"]) is not None:
                texts[result.get_response().id] = text

    assert texts == {name: expected[name] for name in (NAME, OTHER, TASK)}
    (told,) = errors
    assert f"there is no model 'large' here; allowed: {TASK}, {NAME}, {OTHER}" in told


@pytest.mark.parametrize("name", [NAME, OTHER])
def test_tritons_client_of_http_finds_one_at_the_root(cluster: Served, expected: dict[str, str], name: str) -> None:
    """It follows no redirects."""
    column = triton_http.InferInput("args", [1], "BYTES")
    column.set_data_from_numpy(np.array([TEXT.encode()], object))
    with triton_http.InferenceServerClient(cluster.ingress.url.removeprefix("http://")) as client:
        assert client.get_model_metadata(name)["name"] == name
        result = client.infer(name, [column], parameters=GREEDY)
    assert json.loads(result.as_numpy("output").item())[0]["generated_text"] == expected[name]
    with cluster.ingress.client() as http:
        answer = http.post(f"/models/{name}", json={"inputs": TEXT, "parameters": GREEDY})
    assert answer.json()[0]["generated_text"] == expected[name]


def test_a_key_of_another_task_is_for_no_adapter(
    models: dict[str, Path], folders: dict[str, str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    (mine, digest), (foreign, other) = new_key(), new_key()
    add(keys, Key(digest, "mine", tasks=(TASK,)))
    add(keys, Key(other, "foreign", tasks=("translation",)))
    config = IngressConfig(grpc_port=spare_port(), keys=str(keys))
    with (
        served(tmp_path, {TASK: models[TASK]}, config, adapters={NAME: folders[NAME]}, threads=1) as cluster,
        triton.InferenceServerClient(cluster.address) as client,
    ):
        client.infer(NAME, [tensor([TEXT])], parameters=GREEDY, headers={"x-api-key": mine})
        with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
            client.infer(NAME, [tensor([TEXT])], parameters=GREEDY, headers={"x-api-key": foreign})
