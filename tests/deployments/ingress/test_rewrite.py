"""The configuration that the pinned Ray really writes, rewritten, and HAProxy's own opinion of the result."""

import difflib
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve.config import HTTPOptions, gRPCOptions

from deployments.cluster.ray_environment import spare_port
from deployments.http.request import CLASS_HEADER, CLIENT_HEADER
from deployments.ingress import haproxy
from deployments.ingress.config import IngressConfig
from deployments.ingress.lines import Alias, Lines, Settings
from deployments.ingress.model_rules.aliases import aliases
from deployments.ingress.rewrite import RewriteError, rewrite
from deployments.ingress.settings import settings
from tests.deployments.ingress.running import APPLICATIONS, command, own_address, ray_file, running

ALIASED = Settings(aliases=(Alias("/v1", "text-generation", "/v1"),))
NODE = "/node"
Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Ray's own file for applications at some prefixes."""
    return partial(ray_file, tmp_path)


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def test_of_rays_file_these_lines_are_changed_and_no_others(written: Written, tmp_path: Path) -> None:
    """With one line of each kind; which lines each concern adds is for its own tests."""
    before = text_of(written())
    lines = Lines(
        process=("maxconn 7",),
        defaults=("timeout http-keep-alive 3s", 'errorfile 502 "/pages/502.http"', "option srvtcpka"),
        frontend=("http-request deny if { path /never }",),
        application=("http-request deny if { path <prefix>/<application>/never }",),
        replica=("acl is_up_<application> srv_is_up(http-<application>/<server>)",),
        gateway=("http-request deny if { path /gateway }",),
        backend=("http-request wait-for-body time 3s",),
        nowhere=("http-request return status 410",),
        sections=("backend sextet\n    stick-table type ipv6 size 1k",),
    )
    ours = Settings(lines, ALIASED.aliases, "127.0.0.1:18001", "ssl crt <node>/site.pem")

    after, apart = rewrite(before, ours, NODE).split("\nbackend large-", 1)
    apart, added = apart.split("\nbackend sextet\n")
    changes = difflib.ndiff(before.splitlines(), after.splitlines())

    longest_first = sorted(APPLICATIONS, key=lambda name: len(APPLICATIONS[name]), reverse=True)
    errors = before.split("errorfile 502 ")[1].splitlines()[0]
    not_found = before.split("\nbackend default_backend\n")[1].splitlines()[0].strip()
    assert [f"{line[0]} {line[1:].strip()}" for line in changes if line[0] in "+-"] == [
        "+ # rewritten by sextet",
        "+ maxconn 7",
        f"- stats socket {tmp_path}/admin.sock mode 666 level admin expose-fd listeners",
        f"+ stats socket {tmp_path}/admin.sock mode 600 level admin expose-fd listeners",
        "- maxconn 4096",
        "+ timeout http-keep-alive 3s",
        '+ errorfile 502 "/pages/502.http"',
        "+ option srvtcpka",
        "- timeout http-keep-alive 90s",
        f"- errorfile 502 {errors}",
        "- bind :9101",
        "+ bind 127.0.0.1:9101",
        "- bind 127.0.0.1:18000",
        "+ bind 127.0.0.1:18001 ssl crt /node/site.pem",
        "+ bind unix@/node/ingress.sock mode 600 name own",
        "+ http-request deny if { path /never }",
        r"+ http-request replace-path ^/v1(/.*)?$ /text-generation/v1\1 if { path_beg /v1 }",
        "+ acl is_up_text-classification srv_is_up(http-text-classification/replica-text-classification)",
        "+ http-request deny if { path /text-classification/text-classification/never }",
        "+ acl is_up_text-generation srv_is_up(http-text-generation/replica-text-generation)",
        "+ http-request deny if { path /text-generation/text-generation/never }",
        "+ http-request deny if { path /gateway }",
        *(
            f"+ use_backend large-{name} if is_http-{name} {{ {large} }}"
            for name in longest_first
            for large in ("req.hdr_val(content-length) gt 32768", "req.fhdr(transfer-encoding) -m found")
        ),
        f"- {not_found}",
        "+ http-request return status 410",
        *[
            "+ retries 12",
            "+ http-request wait-for-body time 3s",
            "- server proxy 127.0.0.1:9 check backup",
            "+ server proxy 127.0.0.1:9 check backup maxconn 16",
        ]
        * len(APPLICATIONS),
        "- bind *:8404",
        "+ bind 127.0.0.1:8404",
    ]
    assert added == "    stick-table type ipv6 size 1k\n"
    assert apart.count("\nbackend large-") == len(APPLICATIONS) - 1
    assert apart.count("http-reuse never") == len(APPLICATIONS)
    assert [line.split(maxsplit=1)[1] for line in apart.splitlines() if line.strip().startswith("server ")] == [
        server
        for name in longest_first
        for server in (
            f"replica-{name} 127.0.0.1:9 track http-{name}/replica-{name}",
            f"proxy 127.0.0.1:9 track http-{name}/proxy backup maxconn 16",
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
    file = written(prefixes, **options)
    guarded = IngressConfig(keys=str(tmp_path / "keys"), origins=("*",), hosts=("a", "*.b"))
    checked = subprocess.run([*command(tmp_path, file, guarded), "-c"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert ("grpc-status 16 hdr grpc-message 'no key" in text_of(file)) == ("grpc_options" in options)
    frontends = 2 if "grpc_options" in options else 1  # each says whose key it is, and of which class
    for header in (CLIENT_HEADER, CLASS_HEADER):
        assert text_of(file).count(f"http-request set-header {header} ") == frontends
    assert text_of(file).count("timeout http-request") == 1


def test_rays_own_grpc_stays_on_loopback_whatever_the_ingress_listens_on(tmp_path: Path) -> None:
    port, host = spare_port(), own_address()
    options = gRPCOptions(port=port, grpc_servicer_functions=["a.b"])
    with running(tmp_path, IngressConfig(open_to_everybody=True), host, grpc_options=options) as ingress:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=30)
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
        socket.create_connection((host, ingress.port), timeout=30).close()


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
    wrapper = haproxy.write_wrapper(Path("/bin/echo"), tmp_path, settings(IngressConfig()))

    started = subprocess.run([str(wrapper), "-db", "-f", str(file)], capture_output=True, text=True)

    assert (started.returncode, started.stdout) == (1, "")
    assert started.stderr.startswith(f"{file}: section 'listen admin' listens on an address")
    assert "not the configuration that the pinned version of Ray Serve writes" in started.stderr


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """HAProxy on Ray's file with the shipped aliases, in front of a replica of each application."""
    with running(tmp_path) as ingress:
        yield ingress.url


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
        "/rerank": "text-classification POST /text-classification/rerank",
        "/rerank/?a=b": "text-classification POST /text-classification/rerank/?a=b",
        "/reranker": "gateway POST /reranker",
        "/v1/rerank": "text-classification POST /text-classification/v1/rerank",
        "/v1/rerank/": "text-classification POST /text-classification/v1/rerank/",
        "/v1/reranker": "text-generation POST /text-generation/v1/reranker",
        "/v2/rerank": "text-classification POST /text-classification/v2/rerank",
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
        assert told(httpx.post(f"{url}{asked}", content=large)) == f"{reached} {len(large)}"
    assert told(httpx.get(f"{url}/v1/models")) == "text-generation GET /text-generation/v1/models 0"


CONFIGURED = {**APPLICATIONS, "translation": "/translation", "text-classification.large": "/text-classification/large"}


def test_a_route_that_is_configured_and_not_there_yet_says_to_come_back(tmp_path: Path) -> None:
    """The gateway, or the task above it, would say that there is no such path."""
    with running(tmp_path) as ingress:
        assert told(httpx.get(f"{ingress.url}/translation")) == "gateway GET /translation 0"

        ingress.configured = CONFIGURED
        ingress.reload()

        for path in ("/translation", "/translation/x", "/models/translation", "/v2/models/translation/infer"):
            missing = httpx.post(f"{ingress.url}{path}")
            assert (missing.status_code, missing.json()["error_type"]) == (503, "overloaded"), path
            assert int(missing.headers["retry-after"]) > 0
        assert httpx.post(f"{ingress.url}/text-classification/large").status_code == 503
        assert told(httpx.get(f"{ingress.url}/translations")) == "gateway GET /translations 0"
        assert told(httpx.get(f"{ingress.url}/text-classification/x")).startswith("text-classification GET ")


def test_a_task_that_is_there_keeps_its_path_below_one_that_is_not(written: Written, tmp_path: Path) -> None:
    large, gateway = {"text-classification.large": "/text-classification/large"}, {"gateway": "/"}
    with running(tmp_path, applications=large | gateway) as ingress:
        ingress.configured = large | gateway | {"text-classification": "/text-classification"}
        ingress.reload()

        assert httpx.get(f"{ingress.url}/text-classification/x").status_code == 503
        assert told(httpx.get(f"{ingress.url}/text-classification/large")).startswith("text-classification.large ")


def test_no_path_is_known_to_be_missing_before_the_gateway_is_there(tmp_path: Path) -> None:
    task = {"text-generation": "/text-generation"}
    with running(tmp_path, applications=task) as ingress:
        assert httpx.get(f"{ingress.url}/nowhere").status_code == 404

        ingress.configured = APPLICATIONS
        ingress.reload()

        assert httpx.get(f"{ingress.url}/nowhere").status_code == 503


def test_a_process_that_is_replaced_may_live_as_long_as_the_settings_say(written: Written) -> None:
    """Those of the last change of cluster.yaml: Ray's own file has what held at the start."""
    before = text_of(written(hard_stop_after_s=615))
    after = rewrite(before, Settings(hard_stop_s=1215), NODE)

    assert re.findall("hard-stop-after .*", before) == ["hard-stop-after 615s"]
    assert re.findall("hard-stop-after .*", after) == ["hard-stop-after 1215s"]
    assert re.findall("hard-stop-after .*", rewrite(before, Settings(), NODE)) == ["hard-stop-after 615s"]


def told(response: httpx.Response) -> str:
    """Which replica was asked for what."""
    asked = response.json()
    return f"{asked['name']} {asked['method']} {asked['path']} {asked['length']}"


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
