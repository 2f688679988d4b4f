"""The configuration that the pinned Ray really writes, rewritten, and HAProxy's own opinion of the result."""

import difflib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from deployments.cluster.ray_environment import spare_port
from deployments.http.arrival import clock
from deployments.ingress import haproxy
from deployments.ingress.aliases import aliases
from deployments.ingress.config import ConnectionLimits, IngressConfig
from deployments.ingress.limits import max_connections
from deployments.ingress.rewrite import APPLICATION, SERVER, Alias, RewriteError, Settings, rewrite
from deployments.ingress.settings import settings
from tests.deployments.ingress.running import command

ALIASED = Settings(aliases=(Alias("/v1", "text-generation", "/v1"),))
NODE = "/node"
APPLICATIONS = {"text-generation": "/text-generation", "text-classification": "/text-classification", "gateway": "/"}
Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Ray's own file for applications at some prefixes, each with one replica at some port."""

    def write(prefixes: dict[str, str] = APPLICATIONS, ports: dict[str, int] | None = None, **options: Any) -> Path:
        backends = {}
        for name, prefix in prefixes.items():
            replica = ServerConfig(name=f"replica-{name}", host="127.0.0.1", port=(ports or {}).get(name, 9))
            fallback = ServerConfig(name="proxy", host="127.0.0.1", port=9)
            backends[f"http-{name}"] = BackendConfig(
                name=f"http-{name}", path_prefix=prefix, app_name=name, servers=[replica], fallback_server=fallback
            )
        options = {"http_options": HTTPOptions(host="127.0.0.1", port=18000), **options}
        config = HAProxyConfig(
            socket_path=f"{tmp_path}/admin.sock",
            server_state_base=str(tmp_path),
            server_state_file=f"{tmp_path}/state",
            is_head=True,
            has_received_routes=True,
            has_received_servers=True,
            **options,
        )
        api = HAProxyApi(config, backends, config_file_path=f"{tmp_path}/haproxy.cfg")
        api._generate_config_file_internal()
        return tmp_path / "haproxy.cfg"

    return write


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def test_of_rays_file_these_lines_are_changed_and_no_others(written: Written, tmp_path: Path) -> None:
    before = text_of(written())

    ours = replace(settings(IngressConfig(), tmp_path), aliases=ALIASED.aliases)
    after = rewrite(before, ours, NODE).replace(clock(), "<clock>")
    after, apart = after.split("\nbackend large-", 1)
    changes = difflib.ndiff(before.splitlines(), after.splitlines())

    longest_first = sorted(APPLICATIONS, key=lambda name: len(APPLICATIONS[name]), reverse=True)
    errors = text_of(written()).split("errorfile 502 ")[1].splitlines()[0]
    assert [f"{line[0]} {line[1:].strip()}" for line in changes if line[0] in "+-"] == [
        "+ # rewritten by sextet",
        f"+ maxconn {max_connections(ConnectionLimits())}",
        "+ no strict-limits",
        f"- stats socket {tmp_path}/admin.sock mode 666 level admin expose-fd listeners",
        f"+ stats socket {tmp_path}/admin.sock mode 600 level admin expose-fd listeners",
        "- maxconn 4096",
        "+ option http-buffer-request",
        "+ timeout http-request 60s",
        *(f'+ errorfile {status} "{tmp_path}/{status}.http"' for status in (408, 502, 503, 504)),
        "+ option srvtcpka",
        "+ srvtcpka-idle 10s",
        "+ srvtcpka-intvl 5s",
        "+ srvtcpka-cnt 3",
        "+ timeout check 5s",
        *(f"- errorfile {status} {errors}" for status in (502, 503, 504)),
        "- bind :9101",
        "+ bind 127.0.0.1:9101",
        *(f"+ {line}" for line in ours.lines.frontend),
        r"+ http-request replace-path ^/v1(/.*)?$ /text-generation/v1\1 if { path_beg /v1 }",
        *(
            f"+ {line.replace(APPLICATION, name).replace(SERVER, f'replica-{name}')}"
            for name in ("text-classification", "text-generation")  # not the gateway; in our order
            for line in (*ours.lines.replica, *ours.lines.application)
        ),
        *(f"+ {line}" for line in ours.lines.gateway),
        *(
            f"+ use_backend large-{name} if is_http-{name} {{ {large} }}"
            for name in longest_first
            for large in ("req.hdr_val(content-length) gt 32768", "req.fhdr(transfer-encoding) -m found")
        ),
        *(f"+ {line}" for number, name in enumerate(longest_first) for line in of_backend(ours, number, name)),
        "- bind *:8404",
        "+ bind 127.0.0.1:8404",
    ]
    assert apart.count("\nbackend large-") == len(APPLICATIONS) - 1
    assert apart.count("http-reuse never") == len(APPLICATIONS)
    assert [line.split(maxsplit=1)[1] for line in apart.splitlines() if line.strip().startswith("server ")] == [
        server
        for name in longest_first
        for server in (
            f"replica-{name} 127.0.0.1:9 track http-{name}/replica-{name}",
            f"proxy 127.0.0.1:9 track http-{name}/proxy backup",
        )
    ]
    assert not re.search("httpchk|http-check|default-server|reuse always", apart)


def of_backend(ours: Settings, number: int, name: str) -> list[str]:
    """The lines of a backend with one replica and the fallback proxy, which has none of its own."""
    names = {"<backend>": f"http-{name}", "<backend number>": str(number), "<server number>": "0"}
    text = "\n".join(ours.lines.backend)
    for placeholder, value in (names | {"<server>": f"replica-{name}"}).items():
        text = text.replace(placeholder, value)
    return text.splitlines()


def test_a_file_that_was_rewritten_stays_as_it_is(written: Written) -> None:
    once = rewrite(text_of(written()), ALIASED, NODE)

    assert rewrite(once, ALIASED, NODE) == once


def test_an_alias_follows_its_application_and_gives_way_to_another_one_at_its_path(written: Written) -> None:
    def rules(prefixes: dict[str, str]) -> list[str]:
        lines = rewrite(text_of(written(prefixes)), ALIASED, NODE).splitlines()
        return [line.split()[3] for line in lines if "replace-path" in line]

    assert rules({"text-generation": "/write/here", "gateway": "/"}) == [r"/write/here/v1\1"]
    assert rules({"text-generation": "/"}) == []  # a platform's container: the task itself is at the root
    assert rules({"gateway": "/"}) == []
    assert rules({"text-generation": "/text-generation", "mine": "/v1/mine"}) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metrics_enabled": True, "metrics_socket_path": "/tmp/metrics.sock"},
        {"grpc_options": gRPCOptions(port=19000, grpc_servicer_functions=["a.b"])},
        {"enable_hap_optimization": True, "hard_stop_after_s": 120, "timeout_http_request_s": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("prefixes", [APPLICATIONS, {}], ids=["applications", "none"])
def test_haproxy_takes_the_rewritten_file_whatever_ray_was_told(
    written: Written, tmp_path: Path, options: dict[str, Any], prefixes: dict[str, str]
) -> None:
    file = written(prefixes, **options)
    checked = subprocess.run([*command(tmp_path, file), "-c"], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stderr
    assert text_of(file).count("timeout http-request") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("frontend http_frontend", "frontend http", "no section 'frontend http_frontend'"),
        (
            "    bind :9101",
            "    bind [::]:9101",
            "section 'frontend prometheus' has 'bind [::]:9101'; known: bind *:PORT",
        ),
        ("    bind 127.0.0.1:18000", "", "section 'frontend http_frontend' has 0 lines 'bind'; known: one"),
        (" mode 666 ", " ", "section 'global' has no 'stats socket PATH mode 666 ...'"),
        (
            "path_beg /text",
            "path_sub /text",
            "the backend http-text-classification has no 'acl is_http-text-classificat",
        ),
        ("use_backend http-gateway", "use_backend other", "'use_backend other if is_http-gateway' is unknown"),
        ("listen stats", "listen admin", "section 'listen admin' listens on an address; known: frontend http_frontend"),
        ("listen stats", "listen stats\nlisten stats", "section 'listen stats' occurs twice"),
    ],
)
def test_a_file_that_another_ray_would_write_is_refused(written: Written, old: str, new: str, message: str) -> None:
    text = text_of(written())
    assert old in text

    with pytest.raises(RewriteError) as refused:
        rewrite(text.replace(old, new), ALIASED, NODE)

    assert str(refused.value).startswith(message)


def test_haproxy_does_not_start_on_a_file_that_is_refused(written: Written, tmp_path: Path) -> None:
    file = written()
    file.write_text(text_of(file).replace("listen stats", "listen admin"), encoding="utf-8")
    wrapper = haproxy.write_wrapper(Path("/bin/echo"), tmp_path, settings(IngressConfig(), tmp_path))

    started = subprocess.run([str(wrapper), "-db", "-f", str(file)], capture_output=True, text=True)

    assert (started.returncode, started.stdout) == (1, "")
    assert started.stderr.startswith(f"{file}: section 'listen admin' listens on an address")
    assert "not the configuration that the pinned version of Ray Serve writes" in started.stderr


class Replica(ThreadingHTTPServer):
    """Answers with its name, the method, the path it was asked for and the length of the body."""

    def __init__(self, name: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", "0"))
                body = f"{name} {self.command} {self.path} {len(self.rfile.read(length))}".encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def url(written: Written, tmp_path: Path) -> Iterator[str]:
    """HAProxy on Ray's file with the shipped aliases, in front of a replica of each application."""
    replicas = {name: Replica(name) for name in APPLICATIONS}
    ports = {name: replica.server_address[1] for name, replica in replicas.items()}
    public = spare_port()
    file = written(
        ports=ports,
        http_options=HTTPOptions(host="127.0.0.1", port=public),
        metrics_port=spare_port(),
        stats_port=spare_port(),
        timeout_connect_s=5,
        timeout_client_s=5,
        timeout_server_s=5,
    )
    process = subprocess.Popen(command(tmp_path, file))
    give_up_at = time.monotonic() + 30
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{public}/")
            break
        except httpx.ConnectError:
            assert process.poll() is None
            assert time.monotonic() < give_up_at
    yield f"http://127.0.0.1:{public}"
    process.kill()
    process.wait()
    for replica in replicas.values():
        replica.shutdown()
        replica.server_close()


def test_haproxy_sends_an_alias_to_the_replica_of_its_task_and_everything_else_as_before(url: str) -> None:
    assert {alias.root for alias in aliases()} >= {"/v1", "/predict", "/models/translation"}
    large = b"a" * 300_000  # more than HAProxy's buffer holds

    for asked, reached in {
        "/v1/chat/completions": "text-generation POST /text-generation/v1/chat/completions",
        "/v1/x%2Fy%20z?a=b&c=%2F": "text-generation POST /text-generation/v1/x%2Fy%20z?a=b&c=%2F",
        "/v1": "text-generation POST /text-generation/v1",
        "/v1x": "gateway POST /v1x",
        "/predict": "text-classification POST /text-classification/predict",
        "/predict/": "text-classification POST /text-classification/predict/",
        "/predicted": "gateway POST /predicted",
        "/v2": "gateway POST /v2",
        "/v2/health/ready": "gateway POST /v2/health/ready",
        "/v2/models/text-generation/infer": ("text-generation POST /text-generation/v2/models/text-generation/infer"),
        "/v2/models/translation/infer": "gateway POST /v2/models/translation/infer",  # not deployed
        "/models/text-classification": "text-classification POST /text-classification",
        "/models/text-classification/v2": "text-classification POST /text-classification/v2",
        "/models/text-classifications": "gateway POST /models/text-classifications",
        "/models/someone/text-generation": "gateway POST /models/someone/text-generation",
        "/text-generation/v1/models": "text-generation POST /text-generation/v1/models",
        "/": "gateway POST /",
    }.items():
        assert httpx.post(f"{url}{asked}", content=large).text == f"{reached} {len(large)}"
    assert httpx.get(f"{url}/v1/models").text == "text-generation GET /text-generation/v1/models 0"


def test_haproxy_that_knows_no_application_yet_says_to_come_back(written: Written, tmp_path: Path) -> None:
    public = spare_port()
    ports = {"metrics_port": spare_port(), "stats_port": spare_port()}
    file = written({}, http_options=HTTPOptions(host="127.0.0.1", port=public), **ports)
    process = subprocess.Popen(command(tmp_path, file))
    try:
        give_up_at = time.monotonic() + 30
        while True:
            try:
                response = httpx.get(f"http://127.0.0.1:{public}/translation")
                break
            except httpx.ConnectError:
                assert time.monotonic() < give_up_at
    finally:
        process.kill()
        process.wait()

    assert (response.status_code, response.json()["error_type"]) == (503, "overloaded")
    assert int(response.headers["retry-after"]) > 0
