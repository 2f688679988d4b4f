"""Who is answered at the port for gRPC: keys, their tasks and rates, TLS, interfaces; overload and ends as on HTTP."""

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from deployments.cluster.ray_environment import spare_port
from deployments.http.request import CLASS_HEADER, CLIENT_HEADER, HIDDEN_DEADLINE_HEADER
from deployments.ingress.config import Address, IngressConfig, TlsConfig
from deployments.ingress.drain import drain
from deployments.ingress.keys import Key, add, new_key
from deployments.ingress.overload import OVERLOADED
from deployments.ingress.refusals import Kind, read_counts
from pipelines.errors import ConfigurationError
from tests.certificates import Authority
from tests.deployments.grpc.served import Served, served, tensor
from tests.deployments.ingress.running import own_address
from tests.deployments.ingress.running import running as running_alone

TASK, OTHER = "text-classification", "text-generation"


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> dict[str, Path]:
    return {TASK: exported("bert", TASK)}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of keys, and the keys by their names."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    found = {}
    allowed: dict[str, dict[str, Any]] = {
        "all": {"kind": "bulk"},
        "other": {"tasks": (OTHER,)},
        "few": {"per_minute": 2},
        "chat": {},
    }
    for name, options in allowed.items():
        found[name], digest = new_key()
        add(file, Key(digest, name, **options))
    return file, found


@pytest.fixture(scope="module")
def guarded(
    model: dict[str, Path], keys: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    config = IngressConfig(keys=str(keys[0]), grpc_port=spare_port())
    with served(tmp_path_factory.mktemp("grpc"), model, config, threads=1) as running:
        yield running


def ask(served: Served, **options: Any) -> str:
    """The code of a call's error, else OK."""
    secure = options.pop("secure", {})
    with triton.InferenceServerClient(served.address, **secure) as client:
        try:
            client.infer(TASK, [tensor(["a film"])], **options)
        except InferenceServerException as error:
            return f"{error.status().removeprefix('StatusCode.')} {error.message()}"
    return "OK"


def refused(served: Served) -> Counter[Kind]:
    """What the ingress has refused by itself."""
    found = read_counts(served.ingress.admin)
    assert found is not None
    return +Counter(found.of)


def ask_in_stream(served: Served, headers: dict[str, str]) -> str:
    """The same of a request on a stream."""
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(served.address) as client:
        client.start_stream(lambda result, error: answers.put(error), headers=headers)
        client.async_stream_infer(TASK, [tensor(["a film"])])
        error = answers.get(timeout=60)
        client.stop_stream()
    return "OK" if error is None else str(error)


def test_a_key_comes_as_authorization_or_as_x_api_key(guarded: Served, keys: tuple[Path, dict[str, str]]) -> None:
    _, key = keys
    for headers in ({"authorization": f"Bearer {key['all']}"}, {"x-api-key": key["all"]}):
        assert ask(guarded, headers=headers) == "OK"
    for refused in ({}, {"x-api-key": "x"}, {"authorization": key["all"]}):
        assert ask(guarded, headers=refused).startswith("UNAUTHENTICATED the request has no key that is known here")


def test_only_probes_need_no_key_whatever_stands_before_or_behind_their_path(guarded: Served) -> None:
    service = "/inference.GRPCInferenceService"
    probes = ("ServerLive", "ServerReady", "ModelReady")
    others = ("ServerMetadata", "ModelMetadata", "ModelStatistics", "RepositoryIndex", "ModelInfer", "ModelStreamInfer")
    disguised = [f"{service}/{probe}{end}" for probe in probes for end in ("/", "%20", f"/../{TASK}", ";ModelInfer")]
    disguised += [
        "/",
        f"/{TASK}/grpc/ModelInfer",
        f"{service}/../grpc/ModelInfer",
        f"{service}/ServerLive{service}/ModelInfer",
    ]

    def code(path: str) -> str:
        with grpc.insecure_channel(guarded.address) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(path)(b"", timeout=60)
            return str(refused.value.code().name)

    # There is no gateway in this test.
    assert {code(f"{service}/{one}") for one in probes} == {"UNAVAILABLE"}
    assert {code(f"{service}/{one}") for one in others} == {"UNAUTHENTICATED"}
    assert {code(path) for path in disguised} <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}


def test_a_key_is_for_its_tasks_and_has_a_rate(guarded: Served, keys: tuple[Path, dict[str, str]]) -> None:
    _, key = keys

    before = refused(guarded)
    assert ask(guarded, headers={"x-api-key": key["other"]}) == "PERMISSION_DENIED this key may not ask this task"
    answers = [ask(guarded, headers={"x-api-key": key["few"]}) for _ in range(3)]
    assert answers == ["OK", "OK", "RESOURCE_EXHAUSTED this key has used up its requests of this minute"]
    assert ask(guarded).startswith("UNAUTHENTICATED")
    of_http = {(TASK, "403", "task"): 1, ("none", "429", "rate_limit"): 1, ("none", "401", "key"): 1}
    assert refused(guarded) - before == of_http, "statuses are those of HTTP"


def test_a_replica_learns_the_keys_name_its_class_and_the_deadline_and_never_the_key(
    guarded: Served, keys: tuple[Path, dict[str, str]]
) -> None:
    _, key = keys
    seen: list[dict[str, str]] = []
    handler = guarded.replicas[TASK].handler

    async def watching(request: Any) -> Any:
        seen.append(dict(request.headers))
        return await handler(request)

    guarded.replicas[TASK].handler = watching
    try:
        headers = {"x-api-key": key["all"], CLIENT_HEADER: "mallory", "x-request-id": "r-1"}
        assert ask(guarded, headers=headers, client_timeout=20) == "OK"
    finally:
        guarded.replicas[TASK].handler = handler

    (asked,) = seen
    assert (asked[CLIENT_HEADER], asked[CLASS_HEADER], asked["x-request-id"]) == ("all", "bulk", "r-1")
    assert 19 < float(asked[HIDDEN_DEADLINE_HEADER]) < 21
    assert key["all"] not in str(asked)


def test_calls_of_a_bulk_key_are_bulk_alone_and_in_streams_and_others_may_say_so(
    guarded: Served, keys: tuple[Path, dict[str, str]]
) -> None:
    _, key = keys
    scheduler = guarded.replicas[TASK].handler._serving.scheduler
    submit, classes = scheduler.submit, []

    def watching(rows: Any, deadline: Any, *, bulk: bool = False) -> Any:
        classes.append(bulk)
        return submit(rows, deadline, bulk=bulk)

    scheduler.submit = watching
    try:
        for headers in ({"x-api-key": key["all"]}, {"x-api-key": key["chat"]}):
            assert ask(guarded, headers=headers) == "OK"
            assert ask_in_stream(guarded, headers) == "OK"
        assert ask(guarded, headers={"x-api-key": key["chat"], "priority": "u=7"}) == "OK"
        assert ask(guarded, headers={"x-api-key": key["chat"], CLASS_HEADER: "bulk"}) == "OK"  # the ingress decides
    finally:
        scheduler.submit = submit

    assert classes == [True, True, False, False, True, False]


def test_over_tls_the_certificate_of_http_holds(
    model: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority = Authority.make(tmp_path_factory.mktemp("authority"))
    authority.issue("site", "localhost")
    folder = authority.folder
    tls = TlsConfig(str(folder / "site.pem"), str(folder / "site.key"))

    with served(tmp_path, model, IngressConfig(tls=tls, grpc_port=spare_port()), threads=1) as running:
        assert ask(running, secure={"ssl": True, "root_certificates": str(folder / "ca.pem")}) == "OK"
        assert ask(running).startswith("UNAVAILABLE")


@pytest.mark.parametrize(("option", "without"), [("required", "UNAVAILABLE"), ("optional", "OK")])
def test_over_tls_clients_may_need_a_certificate_as_on_http(
    model: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, option: Any, without: str
) -> None:
    own, foreign = (Authority.make(tmp_path_factory.mktemp("authority")) for _ in range(2))
    own.issue("site", "localhost")
    own.issue("client", "client")
    foreign.issue("client", "client")
    ca = str(own.folder / "ca.pem")
    tls = TlsConfig(str(own.folder / "site.pem"), str(own.folder / "site.key"), ca, option)

    def certified(by: Authority) -> dict[str, Any]:
        client = by.folder / "client"
        return {"private_key": str(client.with_suffix(".key")), "certificate_chain": str(client.with_suffix(".pem"))}

    with served(tmp_path, model, IngressConfig(tls=tls, grpc_port=spare_port()), threads=1) as running:
        trusted: dict[str, Any] = {"ssl": True, "root_certificates": ca}
        assert ask(running, secure=trusted | certified(own)) == "OK"
        assert ask(running, secure=trusted).startswith(without)
        assert ask(running, secure=trusted | certified(foreign)).startswith("UNAVAILABLE")


def test_without_keys_nobody_from_elsewhere_is_answered(model: dict[str, Path], tmp_path: Path) -> None:
    host = own_address()
    config = IngressConfig(grpc_port=spare_port())
    with served(tmp_path, model, config, host=host, threads=1) as running:
        assert ask(running).startswith("PERMISSION_DENIED this ingress listens beyond loopback")
    (tmp_path / "open").mkdir()
    config = IngressConfig(grpc_port=spare_port(), open_to_everybody=True)
    with served(tmp_path / "open", model, config, host=host, threads=1) as running:
        assert ask(running) == "OK"


def test_a_replica_that_is_gone_is_unavailable(model: dict[str, Path], tmp_path: Path) -> None:
    with served(tmp_path, model, threads=1) as running:
        assert ask(running) == "OK"
        running.replicas[TASK].close()
        give_up_at = time.monotonic() + 20
        while (answer := ask(running)) == "OK":
            assert time.monotonic() < give_up_at
        assert answer.startswith("UNAVAILABLE no replica of this task answers now")
        assert ask(running) == answer
        assert refused(running)[TASK, "503", "no_replica"] == 2


def test_haproxy_refuses_what_cannot_be_answered_in_time(model: dict[str, Path], tmp_path: Path) -> None:
    """From what the replica has said with an answer: it would take long, and nobody may wait so long."""
    with served(tmp_path, model, threads=1) as running:
        assert ask(running) == "OK"  # it has said that it is free
        scheduler = running.replicas[TASK].handler._serving.scheduler
        scheduler.expected_s = lambda: 1000.0
        assert ask(running) == "OK"
        assert ask(running) == f"RESOURCE_EXHAUSTED {OVERLOADED}"
        assert refused(running) == {(TASK, "429", "overloaded"): 1}


def test_where_the_cluster_ends_calls_are_refused(model: dict[str, Path], tmp_path: Path) -> None:
    with served(tmp_path, model, threads=1) as running, triton.InferenceServerClient(running.address) as client:
        client.infer(TASK, [tensor(["a film"])])
        drain(tmp_path, 1.0)
        with pytest.raises(InferenceServerException, match="the cluster is shutting down"):
            client.infer(TASK, [tensor(["a film"])])


def test_before_the_first_application_is_there_calls_are_unavailable(tmp_path: Path) -> None:
    config = IngressConfig(grpc_port=spare_port())
    address = f"127.0.0.1:{config.grpc_port}"
    with running_alone(tmp_path, config, applications={}), triton.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException, match=f"NOT_FOUND.*there is no model {TASK}; allowed: none"):
            client.infer(TASK, [tensor(["a"])])
        with pytest.raises(InferenceServerException, match="UNAVAILABLE.*no replica of this task answers now"):
            client.is_server_live()


def test_a_body_above_the_limit_is_refused(model: dict[str, Path], tmp_path: Path) -> None:
    limits = {"max_body_bytes": 1000}
    with served(tmp_path, model, threads=1, limits=limits) as one, triton.InferenceServerClient(one.address) as client:
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT.*more than 1000 bytes"):
            client.infer(TASK, [tensor(["x" * 2000])])
        assert len(client.infer(TASK, [tensor(["x"])]).as_numpy("output")) == 1


def test_http_is_as_it_was(model: dict[str, Path], tmp_path: Path) -> None:
    with served(tmp_path, model, threads=1) as running, running.ingress.client() as client:
        assert client.post(f"/{TASK}", json={"inputs": "a"}).status_code == 200
        refused = client.post(f"/{TASK}/grpc/ModelInfer", content=b"", headers={"content-type": "application/grpc"})
        assert (refused.status_code, refused.json()["error_type"]) == (400, "validation")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://{running.address}/health")


def test_a_port_of_both_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="grpc_port is 8000, which is that of HTTP"):
        IngressConfig(grpc_port=8000).check(Address("127.0.0.1", 8000))
    with pytest.raises(ConfigurationError, match="grpc_port is 0"):
        IngressConfig.from_user_config({"ingress": {"grpc_port": 0}})
