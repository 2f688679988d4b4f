"""Who is answered: hosts, origins and methods, asked of the real HAProxy on Ray's own file."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deployments.ingress.config import IngressConfig
from pipelines.errors import ConfigurationError
from tests.deployments.ingress.running import Running, own_address, running

TASK = "/text-classification"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def ingress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With the defaults."""
    with running(tmp_path_factory.mktemp("ingress")) as started:
        yield started


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "10.1.2.3", "[::1]:8000"])
def test_loopback_names_and_addresses_are_answered(ingress: Running, host: str) -> None:
    with ingress.client() as client:
        assert client.get(TASK, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "x", ""])
def test_a_page_that_made_its_own_name_lead_here_reads_nothing(ingress: Running, host: str) -> None:
    with ingress.client() as client:
        refused = client.get(TASK, headers={"host": host})

    assert (refused.status_code, refused.json()["error_type"]) == (421, "unauthorized")
    assert "`hosts` of the ingress" in refused.json()["error"]


def test_a_client_that_names_no_host_is_no_browser(ingress: Running) -> None:
    assert ingress.raw(b"GET /ready HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_names_that_an_operator_lists_are_answered_and_others_are_not(tmp_path: Path) -> None:
    with (
        running(tmp_path, IngressConfig(hosts=("api.example.com", "*.svc.local"))) as ingress,
        ingress.client() as client,
    ):
        statuses = {
            host: client.get(TASK, headers={"host": host}).status_code
            for host in (
                "api.example.com",
                "API.example.com:8000",
                "a.svc.local",
                "svc.local",
                "localhost",
                "127.0.0.1",
            )
        }

    assert statuses == {
        "api.example.com": 200,
        "API.example.com:8000": 200,
        "a.svc.local": 200,
        "svc.local": 421,
        "localhost": 421,
        "127.0.0.1": 200,
    }


def test_pages_of_other_origins_are_refused_before_their_body_is_read(ingress: Running) -> None:
    with ingress.client() as client:
        own = client.post(TASK, json={}, headers={"origin": ingress.url})
        foreign = client.post(TASK, json={}, headers={"origin": "http://evil.example"})
        sandboxed = client.post(TASK, json={}, headers={"origin": "null"})
        preflight = client.options(
            TASK, headers={"origin": "http://evil.example", "access-control-request-method": "POST"}
        )
        elsewhere = client.post(TASK, json={}, headers={"origin": "http://localhost:1"})

    assert own.status_code == 200
    for refused in (foreign, sandboxed, preflight, elsewhere):
        assert (refused.status_code, refused.json()["error_type"]) == (403, "unauthorized")
        assert not [name for name in refused.headers if name.startswith("access-control-")]
    assert not [name for name in own.headers if name.startswith("access-control-")]


def test_a_page_of_a_listed_origin_may_ask_and_read(tmp_path: Path) -> None:
    app = "https://app.example.com"
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-stainless-os"}
    with running(tmp_path, IngressConfig(origins=(app,))) as ingress, ingress.client() as client:
        preflight = client.options(CHAT, headers={"origin": app, **asks})
        answered = client.post(CHAT, json={}, headers={"origin": app})
        foreign = client.options(CHAT, headers={"origin": "https://evil.example", **asks})

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "content-type,x-stainless-os"
    for response in (preflight, answered):
        assert response.headers["access-control-allow-origin"] == app
        assert response.headers["vary"] == "origin"
    assert (foreign.status_code, "access-control-allow-origin" in foreign.headers) == (403, False)


@pytest.mark.parametrize("origins", [("example.com",), ("https://a.example/path",), ("ftp://a.example",)])
def test_an_origin_that_no_browser_sends_is_refused(origins: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="origins has .*; allowed: such as https://app.example.com"):
        IngressConfig(origins=origins)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"BREW /text-classification HTTP/1.1\r\nhost: localhost", 405),
        (b"TRACE /text-classification HTTP/1.1\r\nhost: localhost", 405),
        (b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost:443", 405),
        (b"GET * HTTP/1.1\r\nhost: localhost", 400),
        (b"OPTIONS * HTTP/1.1\r\nhost: localhost", 400),
    ],
    ids=lambda given: repr(given)[:30],
)
def test_a_request_that_is_none_is_refused_in_json(ingress: Running, head: bytes, status: int) -> None:
    answer = ingress.raw(head + b"\r\nconnection: close\r\n\r\n", timeout_s=5)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/json" in head
    assert body.startswith(b'{"error":"')


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET noslash HTTP/1.1",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
        b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nbad header: 1",
    ],
    ids=lambda given: repr(given)[:30],
)
def test_what_is_no_http_is_closed_with_a_400(ingress: Running, sent: bytes) -> None:
    """By HAProxy itself, whose page for it is built in."""
    assert ingress.raw(sent + b"\r\n\r\n", timeout_s=5).startswith(b"HTTP/1.1 400 ")


def test_headers_have_a_bound_below_the_one_of_the_buffer(ingress: Running) -> None:
    with ingress.client() as client:
        below = client.get(TASK, headers={"x-much": "a" * 15_000})
        above = client.get(TASK, headers={"x-much": "a" * 17_000})

    assert below.status_code == 200
    assert (above.status_code, above.json()["error_type"]) == (431, "validation")
    assert "at most 16384" in above.json()["error"]


def test_a_refusal_has_the_shape_of_its_protocol_and_an_id(ingress: Running) -> None:
    with ingress.client() as client:
        openai = client.post(CHAT, json={}, headers={"host": "evil.example", "x-request-id": "mine"})
        below = client.post("/text-generation/v1/completions", json={}, headers={"host": "evil.example"})
        nowhere = client.get("/nowhere", headers={"host": "evil.example"})

    assert openai.json()["error"]["message"].startswith("this name in the Host header")
    assert openai.headers["x-request-id"] == "mine"
    assert below.json()["error"]["code"] == "unauthorized"
    assert len(nowhere.headers["x-request-id"]) == 36


def test_clients_do_not_speak_for_the_ingress(ingress: Running) -> None:
    forged = {"x-sextet-client": "root", "X-Sextet-Class": "interactive", "x-sextet-ingress": "guess"}
    with ingress.client("key") as client:
        seen = client.get(TASK, headers=forged).json()["headers"]

    # Where Ray has no token there is no secret: see test_secret.py.
    assert {name: value for name, value in seen.items() if name.startswith("x-sextet-")} == {"x-sextet-ingress": "none"}
    assert "authorization" not in seen


def test_beyond_loopback_nobody_is_answered_without_keys_or_a_waiver(tmp_path: Path) -> None:
    """Ray Serve, not `sextet serve`, may have been told where to listen."""
    with running(tmp_path, host=own_address()) as ingress, ingress.client() as client:
        refused, ready = client.get(TASK), client.get("/ready")
        chat = client.post(CHAT, json={})

    assert (refused.status_code, refused.json()["error_type"]) == (403, "unauthorized")
    assert "open_to_everybody" in refused.json()["error"]
    assert "open_to_everybody" in chat.json()["error"]["message"]
    assert ready.status_code == 200


def test_a_waiver_in_words_answers_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, IngressConfig(open_to_everybody=True), own_address()) as ingress, ingress.client() as client:
        assert client.get(TASK).status_code == 200
    monkeypatch.setenv("SEXTET_OPEN_TO_EVERYBODY", "1")
    with running(tmp_path, host=own_address()) as ingress, ingress.client() as client:
        assert client.get(TASK).status_code == 200


@pytest.mark.parametrize("is_wanted", [False, True])
def test_who_asks_for_what_is_logged_where_the_operator_says_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_wanted: bool
) -> None:
    """Ray Serve's own is UDP port 514 of this machine, where a syslog may listen."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.setblocking(False)
        target = f"127.0.0.1:{syslog.getsockname()[1]}"
        if is_wanted:
            monkeypatch.setenv("RAY_SERVE_HAPROXY_LOG_TARGET", target)
        with running(tmp_path, log_target=target) as ingress, ingress.client() as client:
            for _ in range(5):
                assert client.get(f"{TASK}?question=private").status_code == 200
            received = b""
            with suppress(BlockingIOError):  # a request is logged before the next one on its connection is read
                while True:
                    received += syslog.recv(65536)

    assert (b"private" in received) == is_wanted
