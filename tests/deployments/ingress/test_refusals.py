"""HAProxy counts what it refuses by itself: the bundled binary on Ray's own file, asked as a scrape asks it."""

import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deployments.http.request import DEADLINE_HEADER
from deployments.ingress.config import ConnectionLimits, IngressConfig
from deployments.ingress.drain import REFUSING
from deployments.ingress.haproxy import command as ask_admin
from deployments.ingress.keys import Key, add, new_key
from deployments.ingress.model_rules.rules import HEADER
from deployments.ingress.node import prepare
from deployments.ingress.refusals import ROW, Counts, Kind, read_counts
from tests.deployments.ingress.running import APPLICATIONS, LOAD, STATUS, Running, command, ray_file, running

CLASSIFY, GENERATE = "text-classification", "text-generation"
SEVERAL = APPLICATIONS | {f"{GENERATE}.large": f"/{GENERATE}/large"}
EVIL = {"host": "evil.example"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    file, found = tmp_path_factory.mktemp("keys") / "keys", {}
    allowed: dict[str, dict[str, Any]] = {"all": {}, "few": {"per_minute": 1}, "other": {"tasks": (CLASSIFY,)}}
    for name, options in allowed.items():
        found[name], digest = new_key()
        add(file, Key(digest, name, **options))
    return file, found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    config = IngressConfig(keys=str(keys[0]), hosts=("localhost", "127.0.0.1"))
    with running(tmp_path_factory.mktemp("guarded"), config, applications=SEVERAL) as started:
        yield started


@pytest.fixture
def ingress(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


def counts(ingress: Running) -> dict[Kind, int]:
    """What was refused, without what never was."""
    found = read_counts(ingress.admin)
    assert found is not None
    return {kind: n for kind, n in found.of.items() if n}


def added(ingress: Running, before: Mapping[Kind, int]) -> dict[Kind, int]:
    return {kind: n - before.get(kind, 0) for kind, n in counts(ingress).items() if n != before.get(kind)}


@pytest.mark.parametrize(
    ("key", "method", "path", "headers", "kind"),
    [
        (None, "POST", f"/{CLASSIFY}", {}, ("none", "401", "key")),
        (None, "POST", "/v1/completions", {}, ("none", "401", "key")),
        ("other", "POST", f"/{GENERATE}", {}, (GENERATE, "403", "task")),
        ("other", "POST", "/v1/completions", {}, (GENERATE, "403", "task")),
        ("other", "POST", f"/{GENERATE}/large", {}, (GENERATE, "403", "task")),
        ("all", "BREW", f"/{CLASSIFY}", {}, ("none", "405", "method")),
        ("all", "GET", f"/{CLASSIFY}", EVIL, ("none", "421", "host")),
        ("all", "GET", f"/{CLASSIFY}", {"origin": "http://evil.example"}, ("none", "403", "origin")),
        ("all", "GET", f"/{CLASSIFY}", {"x-much": "a" * 17_000}, ("none", "431", "headers")),
        ("all", "POST", f"/{GENERATE}", {HEADER: "nobody"}, (GENERATE, "404", "model")),
    ],
    ids=str,
)
def test_a_refusal_is_counted_by_application_status_and_reason(
    guarded: Running,
    keys: tuple[Path, dict[str, str]],
    key: str | None,
    method: str,
    path: str,
    headers: dict[str, str],
    kind: Kind,
) -> None:
    before = counts(guarded)

    with guarded.client(keys[1].get(key or "")) as client:
        refused = [client.request(method, path, headers=headers, json={}) for _ in range(3)]

    assert [str(one.status_code) for one in refused] == [kind[1]] * 3
    assert added(guarded, before) == {kind: 3}
    assert not [name for one in refused for name in one.headers if name.startswith("x-sextet")]


def test_the_rate_limit_of_a_key_is_counted(guarded: Running, keys: tuple[Path, dict[str, str]]) -> None:
    before = counts(guarded)
    with guarded.client(keys[1]["few"]) as client:
        assert [client.get(f"/{CLASSIFY}").status_code for _ in range(4)] == [200, 429, 429, 429]

    assert added(guarded, before) == {("none", "429", "rate_limit"): 3}


def test_what_is_answered_is_not_counted_whoever_answers(ingress: Running) -> None:
    with ingress.client() as client:
        for path in (f"/{CLASSIFY}", "/", "/ready", "/health", "/v1/completions"):
            assert client.get(path).status_code == 200
        assert client.get(f"/{CLASSIFY}", headers={STATUS: "422", LOAD: "0/30000/0"}).status_code == 422

    assert counts(ingress) == {}


def test_overload_is_counted_by_application(ingress: Running) -> None:
    with ingress.client() as client:
        assert client.get(f"/{CLASSIFY}", headers={LOAD: "60000/90000/0"}).status_code == 200
        for path in (f"/{CLASSIFY}", "/predict"):
            assert client.post(path, json={}, headers={DEADLINE_HEADER: "2"}).status_code == 429
        large = {"inputs": "a" * 100_000}  # of the application's second backend
        assert client.post(f"/{CLASSIFY}", json=large, headers={DEADLINE_HEADER: "2"}).status_code == 429

    assert counts(ingress) == {(CLASSIFY, "429", "overloaded"): 3}


def test_an_outage_is_counted_whoever_says_so(tmp_path: Path) -> None:
    """HAProxy where nothing listens; Ray Serve's proxy where it gives up; a replica counts what it answers itself."""
    with running(tmp_path) as ingress:
        with ingress.client() as client:
            by_serve = client.post(f"/{CLASSIFY}", json={}, headers={STATUS: "503"})
            by_replica = client.post(f"/{CLASSIFY}", json={}, headers={STATUS: "503", LOAD: "0/30000/0"})
        assert by_serve.status_code == by_replica.status_code == 503
        assert counts(ingress) == {(CLASSIFY, "503", "no_replica"): 1}

        ingress.ports = dict.fromkeys(ingress.ports, 9)
        ingress.reload()
        with ingress.client() as client:
            for path in (f"/{CLASSIFY}", "/v1/completions"):
                refused = client.post(path, json={})
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")

        assert counts(ingress) == {(CLASSIFY, "503", "no_replica"): 2, (GENERATE, "503", "no_replica"): 1}


def test_a_task_that_is_configured_and_not_there_yet_is_counted(ingress: Running) -> None:
    ingress.configured = APPLICATIONS | {"translation": "/translation"}
    ingress.reload()
    with ingress.client() as client:
        for path in ("/translation", "/models/translation", "/translation/v2"):
            refused = client.post(path, json={})
            assert (refused.status_code, refused.json()["error_type"]) == (503, "overloaded")

    assert counts(ingress) == {("translation", "503", "no_replica"): 3}


def test_a_body_that_does_not_come_is_counted(tmp_path: Path) -> None:
    with running(tmp_path, IngressConfig(limits=ConnectionLimits(body_timeout_s=1))) as ingress:
        head = b"POST /text-classification HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"
        assert ingress.raw(head).startswith(b"HTTP/1.1 408 ")

        assert counts(ingress) == {(CLASSIFY, "408", "timeout"): 1}


def test_connections_above_a_client_s_bound_are_counted(tmp_path: Path) -> None:
    config = IngressConfig(limits=ConnectionLimits(max_connections_per_client=2))
    with running(tmp_path, config) as ingress, ExitStack() as stack:
        for _ in range(2):
            one = stack.enter_context(socket.create_connection((ingress.host, ingress.port), timeout=30))
            one.sendall(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert one.recv(4096)
        for _ in range(3):
            assert ingress.raw(b"GET /ready HTTP/1.0\r\n\r\n") == b""

        assert counts(ingress) == {("none", "none", "connections"): 3}


def test_requests_to_an_ingress_that_ends_are_counted(ingress: Running) -> None:
    ask_admin(ingress.admin, f"experimental-mode on; set var {REFUSING} bool(true)")
    with ingress.client() as client:
        refused = client.get(f"/{CLASSIFY}")

    assert (refused.status_code, refused.json()["error_type"]) == (503, "overloaded")
    assert counts(ingress) == {("none", "503", "shutting_down"): 1}


def test_no_refusal_is_lost_between_threads(ingress: Running) -> None:
    def ask(_: int) -> None:
        with ingress.client() as client:
            for _ in range(300):
                assert client.get(f"/{CLASSIFY}", headers=EVIL).status_code == 421

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))

    assert counts(ingress) == {("none", "421", "host"): 2400}


def refuse(ingress: Running, times: int) -> None:
    with ingress.client() as client:
        for _ in range(times):
            assert client.get(f"/{CLASSIFY}", headers=EVIL).status_code == 421


def test_counts_go_on_in_the_process_that_takes_over(ingress: Running) -> None:
    kind = ("none", "421", "host")
    refuse(ingress, 3)
    first = read_counts(ingress.admin)
    for _ in range(2):
        ingress.reload()
        refuse(ingress, 2)

    last = read_counts(ingress.admin)
    assert first is not None
    assert last is not None
    assert (first.of[kind], last.of[kind]) == (3, 7)
    assert last.epoch == first.epoch


def test_they_begin_anew_where_haproxy_does(ingress: Running) -> None:
    refuse(ingress, 3)
    first = read_counts(ingress.admin)
    (killed,) = ingress.processes
    killed.kill()
    killed.wait()
    assert read_counts(ingress.admin) is None

    ingress.start()

    last = read_counts(ingress.admin)
    assert first is not None
    assert last is not None
    assert set(last.of.values()) == {0}
    assert set(last.of) == set(first.of)
    assert last.epoch != first.epoch


def test_what_is_counted_while_another_process_is_made_ready_is_lost_and_nothing_else(ingress: Running) -> None:
    refuse(ingress, 3)
    run = ingress.write()
    prepare(str(ingress.folder / "settings.json"), str(ingress.folder / "haproxy.cfg"))
    refuse(ingress, 4)
    assert counts(ingress) == {("none", "421", "host"): 7}

    ingress.run([*run, *ingress.taking_over()])

    assert counts(ingress) == {("none", "421", "host"): 3}, "observability/refusals.py hides the fall"


def test_there_may_be_more_counters_than_a_row_has(tmp_path: Path) -> None:
    applications = {f"{GENERATE}.m{number}": f"/{GENERATE}/m{number}" for number in range(30)}
    with running(tmp_path, applications={GENERATE: f"/{GENERATE}"} | applications) as ingress:
        all_of_them = read_counts(ingress.admin)
        assert all_of_them is not None
        assert len(all_of_them.of) > 2 * ROW
        ingress.ports = dict.fromkeys(ingress.ports, 9)
        ingress.reload()
        with ingress.client() as client:
            for path in applications.values():
                assert client.post(path, json={}).status_code == 503

        assert counts(ingress) == {(name, "503", "no_replica"): 1 for name in applications}


def test_haproxy_that_does_not_count_has_no_counts(tmp_path: Path) -> None:
    assert read_counts(tmp_path / "nowhere.sock") is None
    file = ray_file(tmp_path)
    subprocess.run([*command(tmp_path, file), "-c"], check=True, capture_output=True)
    assert "x-sextet-counted %[sc_inc_gpc(" in file.read_text(encoding="utf-8")
    assert "<" not in "".join(line for line in file.read_text("utf-8").splitlines() if "x-sextet-counted" in line)


def test_counts_of_another_epoch_are_other_counts() -> None:
    assert Counts.new() != Counts.new()
