"""What needs a key: attacked with every path that HAProxy rewrites or leads anywhere, around those that are open."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain, product
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import uvicorn
from ray.serve._private.common import DeploymentID, EndpointInfo
from ray.serve._private.proxy_router import ProxyRouter
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from deployments.gateway import Gateway
from deployments.ingress.access import OPEN_PATHS
from deployments.ingress.config import IngressConfig
from deployments.ingress.keys import Key, add, new_key
from deployments.ingress.model_rules.aliases import aliases
from tests.deployments.ingress.running import APPLICATIONS, Running, running

TASK, FOREIGN = "text-classification", "text-generation"
LARGE = f"{FOREIGN}.large"
SEVERAL = APPLICATIONS | {LARGE: f"/{FOREIGN}/large"}
ADAPTER = "pirate"
NAMED = [(one, one.rpartition(".")[2], SEVERAL[one]) for one in SEVERAL if one != "gateway"]
NAMED += [(FOREIGN, ADAPTER, f"/{FOREIGN}/{ADAPTER}")]
PROBES = ("/health", "/ready", "/v2/health/live", "/v2/health/ready")
READINESS = [
    (name, f"{prefix}/v2/models/{model}{version}/ready")
    for name, model, prefix in NAMED
    for version in ("", "/versions/1")
]
OPEN = (
    "/ready",
    "/v2/health/live/",
    "/-/healthz",
    "/console",
    "/console/console.js",
    READINESS[0][1],
    READINESS[-1][1],
)
LED = (
    *(prefix for prefix in SEVERAL.values() if prefix != "/"),
    *(alias.root for alias in aliases()),
    *(f"{root}/{model}" for root in ("/v2/models", "/models") for _, model, _ in (*NAMED, ("", "x", ""))),
    f"/{FOREIGN}/{ADAPTER}",
    *Gateway()._pages,
    "/v2/models/stats",
    f"/v2/models/{FOREIGN}/stats",
    f"/v2/repository/models/{FOREIGN}/stats",
    f"/catalog/{FOREIGN}",
    "/grpc/ModelStatistics",
    "/-/routes",
    "/nowhere",
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file, and a key for one task."""
    file, (key, digest) = tmp_path_factory.mktemp("keys") / "keys", new_key()
    add(file, Key(digest, "alice", tasks=(TASK,)))
    return file, key


@pytest.fixture(scope="module")
def ingress(keys: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("ingress")
    config = IngressConfig(keys=str(keys[0]))
    with running(folder, config, applications=SEVERAL, adapters={ADAPTER: FOREIGN}) as started:
        yield started


@pytest.fixture(scope="module")
def without_gateway(keys: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The gateway's replica is away: Ray Serve's fallback proxy answers for it, and finds the task by itself."""
    router = ProxyRouter(lambda endpoint, info: MagicMock())
    router.update_routes({DeploymentID("d", name): EndpointInfo(prefix) for name, prefix in SEVERAL.items()})
    prefixes = {prefix: name for name, prefix in SEVERAL.items()}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found = router.match_route(scope["path"])
        answer = {"name": prefixes[found[0]] if found else "", "path": scope["path"]}
        await JSONResponse(answer)(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    opened = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
    thread.start()
    folder, config = tmp_path_factory.mktemp("ingress"), IngressConfig(keys=str(keys[0]))
    elsewhere = {"gateway": 9, "proxy": opened.getsockname()[1]}
    with running(folder, config, applications=SEVERAL, elsewhere=elsewhere, adapters={ADAPTER: FOREIGN}) as started:
        give_up_at = time.monotonic() + 30
        while ask(started, "GET", "/nowhere", keys[1])[1].get("name") != "gateway":
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        yield started
    server.should_exit = True
    thread.join(30)


class Asking:
    """One connection that is kept. Paths go out as they are."""

    def __init__(self, ingress: Running) -> None:
        self._connection = http.client.HTTPConnection(ingress.host, ingress.port, timeout=30)
        self.close = self._connection.close

    def ask(self, method: str, path: str, key: str | None = None, **headers: str) -> tuple[int, Any]:
        """The status, and the JSON of the answer."""
        self._connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers | ({"authorization": f"Bearer {key}"} if key else {})).items():
            self._connection.putheader(name.replace("_", "-"), value)
        self._connection.endheaders()
        response = self._connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body[:1] == b"{" else {}


def ask(ingress: Running, method: str, path: str, key: str | None = None, **headers: str) -> tuple[int, Any]:
    with closing(Asking(ingress)) as asking:
        return asking.ask(method, path, key, **headers)


def disguised(path: str) -> Iterator[str]:
    """The path as other servers might read it."""
    first, rest = path[1:2], path[2:]
    yield from (path, f"{path}/", f"/{path}", f"/.{path}", f"/x/..{path}", f"/x/%2e%2e{path}", f"/%2F{path[1:]}")
    yield from (f"/%{ord(first):02x}{rest}" if first else "/", f"/%25{ord(first or 'a'):02x}{rest}", path.upper())
    yield from (f"/%{ord(first):02X}{rest}/%zz" if first else "/", path.replace("-", "%2D"), f"{path}%2Fx", f"{path};x")


def around(led: Iterable[str]) -> list[str]:
    """Paths disguised, and below and behind what is open."""
    found = set(chain.from_iterable(map(disguised, led)))
    for path, one in product(led, OPEN):
        found |= {f"{one.rstrip('/')}{path}", f"{path}{one}", f"{one}/..{path}", f"{one}/%2e%2e{path}"}
    return sorted(found)


def is_open(path: str, answer: Any) -> bool:
    """Whether an answer is one that docs/security.md gives to everybody; `path` was asked."""
    if "name" not in answer:  # HAProxy's own
        return path in OPEN_PATHS
    name, seen = answer["name"], answer["path"]
    if name == "gateway":
        return seen == "/" or re.fullmatch(r"/console/[a-z]+[.][a-z]+", seen) is not None
    health = [f"{prefix}/v2/health/{one}" for of, _, prefix in NAMED if of == name for one in ("live", "ready")]
    return (name, seen) in READINESS or seen in health


@pytest.mark.parametrize("served", ["ingress", "without_gateway"])
def test_without_a_key_only_what_is_open_is_answered(served: str, request: pytest.FixtureRequest) -> None:
    reached = []
    with closing(Asking(request.getfixturevalue(served))) as asking:
        for method, path in product(("GET", "POST"), around(LED)):
            status, answer = asking.ask(method, path, accept="text/html")
            if status not in (400, 401) and not (method == "GET" and is_open(path, answer)):
                reached.append((method, path, status, answer))

    assert reached[:3] == []


@pytest.mark.parametrize("served", ["ingress", "without_gateway"])
def test_a_key_of_one_task_reaches_no_other_task(
    served: str, keys: tuple[Path, str], request: pytest.FixtureRequest
) -> None:
    reached, led = [], [one for one in LED if FOREIGN in one or "large" in one or "v1" in one]
    with closing(Asking(request.getfixturevalue(served))) as asking:
        for method, path in product(("GET", "POST"), around(led)):
            status, answer = asking.ask(method, path, keys[1])
            if answer.get("name") in (FOREIGN, LARGE) and not (method == "GET" and is_open(path, answer)):
                reached.append((method, path, status, answer))

    assert reached[:3] == []


def test_the_gateway_learns_which_tasks_a_key_is_for(ingress: Running, keys: tuple[Path, str]) -> None:
    _, answer = ask(ingress, "GET", f"/{TASK}/v2/models/{FOREIGN}/stats", keys[1], x_sextet_tasks="|text-generation|")

    assert (answer["name"], answer["path"]) == ("gateway", f"/v2/repository/models/{FOREIGN}/stats")
    assert answer["headers"]["x-sextet-tasks"] == f"|{TASK}|"


@pytest.mark.parametrize("path", [*OPEN_PATHS, "/ready/", *(path for _, path in READINESS)])
def test_health_and_readiness_need_no_key(ingress: Running, path: str) -> None:
    assert ask(ingress, "GET", path)[0] == 200
    assert ask(ingress, "HEAD", path)[0] != 401


@pytest.mark.parametrize(("name", "model", "prefix"), NAMED)
def test_a_models_own_probe_reaches_it_and_a_header_leads_it_to_no_other(
    ingress: Running, name: str, model: str, prefix: str
) -> None:
    status, answer = ask(ingress, "GET", f"/v2/models/{model}/ready")

    assert (status, answer["name"], answer["path"]) == (200, name, f"{prefix}/v2/models/{model}/ready")
    assert ask(ingress, "GET", f"/v2/models/{model}/ready", x_model="x")[0] == 401
    assert ask(ingress, "GET", "/v2/models/unknown/ready")[0] == 401
