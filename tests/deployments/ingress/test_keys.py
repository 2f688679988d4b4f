"""Keys: the file and its command, and what HAProxy lets through with them, at once and after a reload."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from deployments.ingress.config import IngressConfig
from deployments.ingress.haproxy import command as ask_admin
from deployments.ingress.keys import Key, KeysError, add, new_key, read_keys, revoke
from tests.deployments.ingress.running import Running, running

TASK, OTHER = "/text-classification", "/text-generation"
CHAT = "/v1/chat/completions"
PROMISED_S = 1.0
BUSY = 10  # a machine that runs other tests meanwhile may take so many times as long
ZEROS = "0" * 64
PATIENCE_S = 30.0
TAUGHT = 0x2000  # of the flags of peers: a peer has said that this is all


def added(file: Path, name: str, **options: object) -> str:
    """A new key in the file."""
    key, digest = new_key()
    add(file, Key(digest, name, **options))  # type: ignore[arg-type]
    return key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def ingress(tmp_path: Path, file: Path) -> Iterator[Running]:
    """That knows one key, `alice`'s: see `key`."""
    added(file, "nobody")
    (tmp_path / "node").mkdir()
    with running(tmp_path / "node", IngressConfig(keys=str(file))) as started:
        yield started


def until(happened: Callable[[], bool], what: str) -> float:
    """Seconds until something has happened."""
    started_at = time.monotonic()
    while not happened():
        assert time.monotonic() - started_at < PATIENCE_S, what
        time.sleep(0.02)
    return time.monotonic() - started_at


def status(ingress: Running, key: str | None, path: str = TASK) -> int:
    with ingress.client(key) as client:
        return client.get(path).status_code


def test_a_file_holds_no_key_and_only_its_owner_reads_it(file: Path) -> None:
    key = added(file, "alice", per_minute=60, kind="bulk", tasks=("translation", "summarization"))

    assert key not in file.read_text(encoding="ascii")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (read,) = read_keys(file)
    assert (read.name, read.per_minute, read.kind, read.tasks) == (
        "alice",
        60,
        "bulk",
        ("translation", "summarization"),
    )


def test_keys_that_are_added_at_once_all_stay(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: added(file, f"key-{number}"), range(40)))

    assert len(read_keys(file)) == 40


def test_a_name_is_taken_once_and_an_unknown_one_cannot_be_revoked(file: Path) -> None:
    added(file, "alice")

    with pytest.raises(KeysError, match="has a key 'alice'; revoke it"):
        added(file, "alice")
    with pytest.raises(KeysError, match="has no key 'bob'; it has: alice"):
        revoke(file, "bob")
    revoke(file, "alice")
    assert read_keys(file) == []


@pytest.mark.parametrize(
    "line", ["key", "0" * 64 + " a b:0:bulk:*", "0" * 64 + " a:0:urgent:*", "0" * 63 + " a:0:bulk:*"]
)
def test_a_file_that_somebody_else_wrote_is_refused_with_its_line(file: Path, line: str) -> None:
    file.write_text(f"# head\n{line}\n", encoding="ascii")

    with pytest.raises(KeysError, match="keys, line 2: not a line of `sextet keys`"):
        read_keys(file)


def test_without_a_key_the_answer_is_401_in_the_shape_of_the_protocol(ingress: Running) -> None:
    with ingress.client() as client:
        task, chat = client.post(TASK, json={}), client.post(CHAT, json={})
        inference = client.post("/v2/models/text-classification/infer", json={})
        predict = client.post("/predict", json={})
    with ingress.client("sextet_guessed") as client:
        guessed = client.post(TASK, json={})

    for response in (task, chat, inference, predict, guessed):
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert chat.json()["error"]["type"] == "authentication_error"
    for response in (task, inference, predict, guessed):
        assert response.json()["error_type"] == "unauthorized"


def test_probes_and_the_console_need_no_key_and_the_catalog_does(ingress: Running) -> None:
    for path in ("/health", "/ready", "/-/healthz", "/v2/health/live", "/v2/health/ready", "/console/console.js"):
        assert status(ingress, None, path) == 200, path
    with ingress.client() as client:
        assert client.get("/", headers={"accept": "text/html,*/*"}).status_code == 200
        assert client.get("/").status_code == 401
        assert client.get("/openapi.json").status_code == 401
        for path in ("/console", "/ready/x", "//ready", "/console/../text-classification", "/-/routes"):
            refused = client.build_request("GET", "/")
            refused.url = httpx.URL(ingress.url).copy_with(raw_path=path.encode())
            answer = client.send(refused)
            # What is not refused goes to the gateway, which has no task below such a path.
            assert answer.status_code == 401 or answer.json()["name"] == "gateway", path


def test_a_key_is_valid_and_revoked_within_a_second_without_a_restart(ingress: Running, file: Path) -> None:
    before = [one.pid for one in ingress.processes]

    key = added(file, "alice")
    took_s = until(lambda: status(ingress, key) == 200, "the key became valid")
    revoke(file, "alice")
    revoked_s = until(lambda: status(ingress, key) == 401, "the key became invalid")

    assert max(took_s, revoked_s) <= BUSY * PROMISED_S
    assert [one.pid for one in ingress.processes] == before


def test_what_a_reload_reads_is_what_holds_before_and_after_it(ingress: Running, file: Path) -> None:
    key = added(file, "alice")
    until(lambda: status(ingress, key) == 200, "the key became valid")

    ingress.reload()
    assert status(ingress, key) == 200
    revoke(file, "alice")
    until(lambda: status(ingress, key) == 401, "the key became invalid in the new process")
    ingress.reload()
    assert status(ingress, key) == 401


def test_a_file_that_is_damaged_or_gone_changes_nothing(ingress: Running, file: Path) -> None:
    key = added(file, "alice")
    until(lambda: status(ingress, key) == 200, "the key became valid")

    file.write_text("half a li", encoding="ascii")
    time.sleep(2 * PROMISED_S)
    assert status(ingress, key) == 200
    file.unlink()
    ingress.reload()
    assert status(ingress, key) == 200


def test_no_file_lets_nobody_in(tmp_path: Path) -> None:
    with running(tmp_path, IngressConfig(keys=str(tmp_path / "missing"))) as ingress:
        assert status(ingress, "sextet_any") == 401
        assert status(ingress, None) == 401


def test_the_replica_learns_the_name_and_the_class_and_never_the_key(ingress: Running, file: Path) -> None:
    key = added(file, "alice", kind="bulk")
    until(lambda: status(ingress, key) == 200, "the key became valid")

    with ingress.client(key) as client:
        seen = client.get(TASK, headers={"x-sextet-client": "root", "x-sextet-class": "interactive"}).json()["headers"]

    assert (seen["x-sextet-client"], seen["x-sextet-class"]) == ("alice", "bulk")
    assert key not in str(seen)
    assert "authorization" not in seen


def test_a_key_has_a_rate_of_its_own(ingress: Running, file: Path) -> None:
    few, many = added(file, "few", per_minute=3), added(file, "many")
    until(lambda: status(ingress, many) == 200, "the keys became valid")

    with ingress.client(few) as client:
        answers = [client.get(TASK) for _ in range(6)]
        chat = client.post(CHAT, json={})

    assert [one.status_code for one in answers] == [200] * 3 + [429] * 3
    assert answers[-1].json()["error_type"] == "overloaded"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert (chat.status_code, chat.json()["error"]["type"]) == (429, "rate_limit_error")
    assert status(ingress, many) == 200


def test_after_a_burst_a_key_is_told_when_its_minute_ends_on_both_sides_of_a_reload(
    ingress: Running, file: Path
) -> None:
    few, many = added(file, "few", per_minute=3), added(file, "many", per_minute=600)

    def shown(what: str) -> str:
        return ask_admin(ingress.admin, f"show {what}")

    until(lambda: " many:600:" in shown(f"map {ingress.folder}/keys.map"), "the keys became valid")
    until(lambda: bool(int(shown("peers").split("flags=")[1].split()[0], 16) & TAUGHT), "the first process was taught")

    began_at: dict[str, float] = {}

    def is_told_its_end(key: str) -> bool:
        """In its first minute nothing of a window decays: whoever asks earlier is refused again."""
        with ingress.client(key) as client:
            began_at.setdefault(key, time.monotonic())
            while (answer := client.get(TASK)).status_code == 200:
                pass
        left_s = 60 - (time.monotonic() - began_at[key])
        return answer.status_code == 429 and left_s <= int(answer.headers["retry-after"]) <= 60

    assert is_told_its_end(few)
    assert is_told_its_end(many)
    ingress.reload()
    until(lambda: " gpc0=600 " in shown("table sextet_keys"), "the new process learned")
    assert is_told_its_end(few)


@pytest.mark.parametrize(
    ("before", "counted", "left_s", "wait_s"),
    # In the middle of a window, of the one before half counts: of 120, 60 + 0; a sixtieth of a minute frees one more.
    [(120, 0, 30, range(1, 2)), (60, 30, 30, range(1, 2)), (10, 55, 30, range(5, 7)), (0, 60, 30, range(29, 31))],
)
def test_in_later_minutes_a_key_waits_for_what_decays_of_the_one_before(
    ingress: Running, file: Path, before: int, counted: int, left_s: int, wait_s: range
) -> None:
    """The table as HAProxy would have it then."""
    key = added(file, "steady", per_minute=60)
    until(lambda: status(ingress, key) == 200, "the key became valid")
    began = int(1000 * (time.time() - 60 + left_s)) & 0xFFFFFFFF
    rate = before * left_s // 60 + counted
    entry = f"data.gpt {began} data.gpc0 {counted} data.gpc0_rate {rate}"
    assert not ask_admin(ingress.admin, f"set table sextet_keys key steady {entry}").strip()

    with ingress.client(key) as client:
        answer = client.get(TASK)

    assert (answer.status_code, int(answer.headers["retry-after"]) in wait_s) == (429, True), answer.headers


def test_a_reload_gives_a_key_no_new_minute(ingress: Running, file: Path) -> None:
    key = added(file, "few", per_minute=3)

    def shown(what: str) -> str:
        return ask_admin(ingress.admin, f"show {what}")

    until(lambda: " few:3:" in shown(f"map {ingress.folder}/keys.map"), "the key became valid")
    until(lambda: bool(int(shown("peers").split("flags=")[1].split()[0], 16) & TAUGHT), "the first process was taught")
    answers = []
    for counted in (1, 2, 3, 3):
        answers.append(status(ingress, key))
        ingress.reload()
        until(lambda: f" gpc0={counted} " in shown("table sextet_keys"), "the new process learned")  # noqa: B023

    assert answers == [200, 200, 200, 429]
    assert stat.S_IMODE((ingress.folder / "peers.sock").stat().st_mode) == 0o600


def test_a_key_may_ask_its_tasks_alone_under_all_their_names(ingress: Running, file: Path) -> None:
    key = added(file, "alice", tasks=("text-classification",))
    until(lambda: status(ingress, key) == 200, "the key became valid")

    allowed = (TASK, f"{TASK}/", f"{TASK}/v2/models/text-classification", "/predict", "/models/text-classification")
    for path in (*allowed, "/v2/models/text-classification", "/", "/openapi.json"):
        assert status(ingress, key, path) == 200, path
    for path in (OTHER, f"{OTHER}/", f"{OTHER}/v1/models", "/v1/models", "/models/text-generation", f"{OTHER}?a=b"):
        assert status(ingress, key, path) == 403, path
    with ingress.client(key) as client:
        assert client.post(CHAT, json={}).json()["error"]["message"] == "this key may not ask this task"


def test_what_watches_the_files_ends_with_its_haproxy_however_soon_that_ends(ingress: Running) -> None:
    def watching() -> int:
        return sum(
            str(ingress.folder).encode() in line and b"\0watch\0" in line
            for line in (command_line(one) for one in Path("/proc").glob("[0-9]*/cmdline"))
        )

    until(lambda: watching() == 1, "it watches")
    ingress.reload()
    ingress.reload()
    for process in ingress.processes:  # the last one before its watcher may have begun
        process.kill()
        process.wait()
    until(lambda: watching() == 0, "nothing watches")


def command_line(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended while it was looked at
        return b""


def test_the_socket_of_the_owner_needs_no_key(ingress: Running) -> None:
    own = ingress.folder / "ingress.sock"

    assert stat.S_IMODE(own.stat().st_mode) == stat.S_IMODE(ingress.admin.stat().st_mode) == 0o600
    assert own.stat().st_uid == os.getuid()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(own)), base_url="http://localhost") as client:
        assert client.get(TASK).status_code == 200
        assert client.get(OTHER).status_code == 200
