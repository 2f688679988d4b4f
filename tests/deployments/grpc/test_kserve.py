"""ModelInfer through HAProxy as KServe's own client asks it, over gRPC and over REST."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pipelines
from deployments.cluster.ray_environment import spare_port
from deployments.ingress.config import IngressConfig
from deployments.ingress.keys import Key, add, new_key
from tests.deployments.grpc.served import Served, served
from tests.deployments.grpc.test_infer import approximately
from tests.kserve_client import GRPC, REST, Call, outcomes

TASK, WRITE = "text-classification", "text-generation"
TEXTS = ("what a film", "정말 좋았어요 😀")
SAMPLED: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "seed": 1}


@pytest.fixture(scope="module")
def models(exported: Callable[..., Path]) -> dict[str, Path]:
    return {TASK: exported("bert", TASK), WRITE: exported("qwen2", WRITE)}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file, (secret, digest) = tmp_path_factory.mktemp("keys") / "keys", new_key()
    add(file, Key(digest, "alice"))
    return file, secret


@pytest.fixture(scope="module")
def guarded(
    models: dict[str, Path], key: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    config = IngressConfig(keys=str(key[0]), grpc_port=spare_port())
    with served(tmp_path_factory.mktemp("grpc"), models, config, threads=1) as running:
        yield running


@pytest.fixture
def asking(guarded: Served, key: tuple[Path, str]) -> Callable[..., Call]:
    """A call of `infer` with a key."""

    def make(over: str, task: str = TASK, texts: Sequence[Any] = TEXTS, **more: Any) -> Call:
        url = guarded.address if over == GRPC else f"http://{guarded.ingress.host}:{guarded.ingress.port}/{task}"
        given = {"headers": {"authorization": f"Bearer {key[1]}"}, "model": task} | more
        return Call(over, url, "infer", texts=texts, **given)

    return make


def test_it_asks_over_both_protocols_with_either_form_of_tensor(
    asking: Callable[..., Call], models: dict[str, Path]
) -> None:
    columns: tuple[Any, ...] = (TEXTS, [[one] for one in TEXTS])
    asked = [
        asking(over, texts=texts, binary=binary, parameters={"top_k": 1}, id="7")
        for over in (GRPC, REST)
        for binary in (True, False)
        for texts in columns
    ]

    found = outcomes(asked)

    expected = approximately(pipelines.load(models[TASK])(list(TEXTS), top_k=1))
    output = ["output", "BYTES", [2, 1]]
    assert found == [{"id": "7", "model": TASK, "output": output, "documents": expected}] * len(asked)


def test_parameters_are_numbers_and_where_its_messages_have_no_place_for_one_a_text(
    asking: Callable[..., Call], models: dict[str, Path]
) -> None:
    """Its messages of gRPC hold integers, booleans and texts alone."""
    hot, texts = SAMPLED | {"temperature": 1.9, "top_p": 0.5}, ("The river",)
    grpc, rest = outcomes(
        [
            asking(GRPC, WRITE, texts, tensor="text", parameters=hot | {"temperature": "1.9", "top_p": "0.5"}),
            asking(REST, WRITE, texts, tensor="text", parameters=hot),
        ]
    )

    assert grpc["documents"] == rest["documents"] == [pipelines.load(models[WRITE])(texts[0], **hot)]


def test_errors_reach_it_in_words_and_with_their_status(asking: Callable[..., Call]) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"headers": {}},
        {"headers": {"x-api-key": "x"}},
        {"parameters": {"top_kk": 1}},
        {"parameters": {"top_k": 0}},
        {"texts": (1.5, 2.0), "datatype": "FP32"},
        {"texts": ("a", "")},
        {"tensor": "x"},
    )
    found = outcomes([asking(over, **change) for change in changes for over in (GRPC, REST)])

    for (code, status, words), *pair in zip(
        (
            ("UNAUTHENTICATED", 401, "the request has no key that is known here"),
            ("UNAUTHENTICATED", 401, "the request has no key that is known here"),
            ("INVALID_ARGUMENT", 400, "not used by the model: ['top_kk']"),
            ("INVALID_ARGUMENT", 400, "parameters.top_k is 0"),
            ("INVALID_ARGUMENT", 400, "inputs[0].datatype is 'FP32'; allowed: BYTES"),
            ("INVALID_ARGUMENT", 400, "args[1] is empty"),
            ("INVALID_ARGUMENT", 400, "inputs are named ['x']; allowed: one of args"),
        ),
        found[::2],
        found[1::2],
        strict=True,
    ):
        assert [one["code"] for one in pair] == [code, status]
        assert all(words in one["error"] for one in pair), (words, pair)
