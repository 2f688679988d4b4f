"""Several models of a task: HAProxy finds the one that a request asks for, and shares requests among them."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.http.request import DRAWN_HEADER, OTHERS_HEADER
from deployments.ingress.config import Address, IngressConfig
from deployments.ingress.haproxy import command as ask_admin
from deployments.ingress.keys import Key, add, new_key
from deployments.ingress.model_rules.rules import HEADER
from deployments.ingress.model_rules.traffic import TrafficError, read_traffic
from deployments.ingress.rewrite import rewrite
from deployments.ingress.settings import settings
from pipelines.errors import ConfigurationError
from tests.deployments.ingress.running import APPLICATIONS, Running, ray_file, running

TASK = "text-generation"
LARGE, SMALL = f"{TASK}.large", f"{TASK}.small"
SEVERAL = APPLICATIONS | {LARGE: f"/{TASK}/large", SMALL: f"/{TASK}/small"}


@pytest.fixture(scope="module")
def ingress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("ingress"), applications=SEVERAL) as ingress:
        yield ingress


@pytest.fixture
def client(ingress: Running) -> Iterator[httpx.Client]:
    with ingress.client() as client:
        yield client


def asked(response: httpx.Response) -> tuple[str, str]:
    """The application that answered, and the path that it saw."""
    answer = response.raise_for_status().json()
    return answer["name"], answer["path"]


@pytest.mark.parametrize(
    ("path", "application", "seen"),
    [
        (f"/{TASK}", TASK, f"/{TASK}"),
        (f"/{TASK}/", TASK, f"/{TASK}/"),
        (f"/{TASK}/large", LARGE, f"/{TASK}/large"),
        (f"/{TASK}/large/v1/completions?a=1", LARGE, f"/{TASK}/large/v1/completions?a=1"),
        (f"/{TASK}/larger", TASK, f"/{TASK}/larger"),
        (f"/{TASK}/default", TASK, f"/{TASK}"),
        (f"/{TASK}/default/v1/completions?a=1", TASK, f"/{TASK}/v1/completions?a=1"),
        ("/v2/models/large/infer", LARGE, f"/{TASK}/large/v2/models/large/infer"),
        ("/models/small", SMALL, f"/{TASK}/small"),
        (f"/v2/models/{TASK}/infer", TASK, f"/{TASK}/v2/models/{TASK}/infer"),
        ("/text-classification", "text-classification", "/text-classification"),
        ("/", "gateway", "/"),
    ],
)
def test_a_path_chooses(client: httpx.Client, path: str, application: str, seen: str) -> None:
    assert asked(client.post(path, json={})) == (application, seen)


def test_a_header_chooses_at_the_path_of_the_task(client: httpx.Client) -> None:
    for name, application in (("large", LARGE), ("small", SMALL), (TASK, TASK)):
        expected = f"/{TASK}" if application == TASK else f"/{TASK}/{name}"
        assert asked(client.post(f"/{TASK}", headers={HEADER: name}, json={})) == (application, expected)
        assert asked(client.get(f"/{TASK}/v2", headers={HEADER: name})) == (application, f"{expected}/v2")
    # A path that chooses goes before a header, and tasks with one model have none to choose.
    assert asked(client.post(f"/{TASK}/large", headers={HEADER: "small"}, json={}))[0] == LARGE
    assert asked(client.post("/text-classification", headers={HEADER: "x"}, json={}))[0] == "text-classification"


@pytest.mark.parametrize("name", ["larger", "text-classification", 'a"b\\', "ü", "x" * 500])
def test_a_header_with_an_unknown_name_is_a_404_that_names_those_there_are(client: httpx.Client, name: str) -> None:
    headers = [(HEADER.encode(), name.encode("latin-1"))]
    plain = client.post(f"/{TASK}", headers=headers, json={})
    of_openai = client.post(f"/{TASK}/v1/completions", headers=headers, json={})

    assert plain.status_code == of_openai.status_code == 404
    assert plain.json()["error_type"] == "not_found"
    assert plain.json()["error"].endswith(f" of {TASK}; allowed: {TASK} large small")
    assert of_openai.json()["error"]["code"] == "model_not_found"
    assert len(plain.content) < 300


@pytest.mark.parametrize("base", ["/v1", f"/{TASK}/v1"])
def test_a_body_chooses_where_openai_names_the_model(client: httpx.Client, base: str) -> None:
    for body, application in (
        ({"model": "large"}, LARGE),
        ({"messages": [{"role": "user", "content": '{"model": "small"}'}], "model": "large"}, LARGE),
        ({"model": "other"}, TASK),
        ({"model": 3}, TASK),
        ({}, TASK),
        ([], TASK),
    ):
        prefix = "/large" if application == LARGE else ""
        found = asked(client.post(f"{base}/chat/completions", json=body))
        assert found == (application, f"/{TASK}{prefix}/v1/chat/completions")
    assert asked(client.post(f"/{TASK}", json={"model": "large"}))[0] == TASK, "no protocol of OpenAI"
    assert asked(client.post(f"{base}/completions", json={"model": "large"}, headers={HEADER: "small"}))[0] == SMALL
    assert asked(client.post(f"{base}/completions", content=b'{"model": "lar'))[0] == TASK


def test_a_body_chooses_where_coheres_clients_name_the_model(client: httpx.Client) -> None:
    for path in ("v1/rerank", "v2/rerank"):
        for name, application in (("large", LARGE), ("nobody", TASK)):
            prefix = "/large" if application == LARGE else ""
            found = asked(client.post(f"/{TASK}/{path}", json={"model": name}))
            assert found == (application, f"/{TASK}{prefix}/{path}")


def test_the_default_is_told_the_names_of_the_others_and_clients_cannot_say_them(client: httpx.Client) -> None:
    def headers(path: str, body: Any) -> Any:
        return client.post(path, json=body, headers={OTHERS_HEADER: "forged"}).json()["headers"]

    assert headers("/v1/completions", {"model": "other"})[OTHERS_HEADER] == "large small"
    assert OTHERS_HEADER not in headers("/text-classification", {})
    # HAProxy sees as much of a body as its buffer holds.
    large = {"prompt": "x" * 100_000, "model": "large"}
    answer = client.post("/v1/completions", json=large).json()
    assert (answer["name"], answer["length"]) == (TASK, len(json.dumps(large, separators=(",", ":"))))


def test_a_task_with_one_model_has_no_rules_of_this_kind(tmp_path: Path) -> None:
    file, ours = ray_file(tmp_path).read_text(), settings(IngressConfig())
    assert ours.lines.several
    assert HEADER not in rewrite(file, ours, str(tmp_path))


def test_a_key_of_a_task_is_for_all_of_its_models(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    (mine, digest), (foreign, other) = new_key(), new_key()
    add(keys, Key(digest, "mine", tasks=(TASK,)))
    add(keys, Key(other, "foreign", tasks=("text-classification",)))
    with running(tmp_path, IngressConfig(keys=str(keys)), applications=SEVERAL) as ingress:
        for path, headers in ((f"/{TASK}/large", {}), (f"/{TASK}", {HEADER: "large"}), ("/models/large", {})):
            with ingress.client(mine) as client:
                assert asked(client.post(path, json={}, headers=headers))[0] == LARGE
            with ingress.client(foreign) as client:
                assert client.post(path, json={}, headers=headers).status_code == 403


class Shared:
    """An ingress with a file of shares."""

    def __init__(self, ingress: Running, file: Path) -> None:
        self.ingress, self.file = ingress, file

    def set(self, text: str, bounds: str) -> None:
        """Write the file, and wait until HAProxy has it."""
        self.file.write_text(text)
        copy = self.ingress.folder / "traffic.map"
        give_up_at = time.monotonic() + 30
        while self._entries(copy) != bounds.splitlines():
            assert time.monotonic() < give_up_at
            time.sleep(0.05)

    def _entries(self, copy: Path) -> list[str]:
        """`KEY VALUE` of HAProxy's map; it shows the address of each before them."""
        shown = ask_admin(self.ingress.admin, f"show map {copy}").splitlines()
        return [line.split(" ", 1)[1] for line in shown if line]

    def ask(self, n: int, path: str = f"/{TASK}", **options: Any) -> Counter[str]:
        with self.ingress.client() as client:
            return Counter(client.post(path, **({"json": {}} | options)).json()["name"] for _ in range(n))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    file = folder / "traffic"
    file.write_text("")
    with running(folder, IngressConfig(traffic=str(file)), applications=SEVERAL) as ingress:
        yield Shared(ingress, file)


def test_a_share_of_the_requests_goes_to_another_model(shared: Shared) -> None:
    shared.set(f"{TASK} large 5\n{TASK} small 20.5 # more\n", f"{LARGE} 500\n{SMALL} 2550\n")
    found = shared.ask(400)
    assert found == {LARGE: pytest.approx(20, abs=2), SMALL: pytest.approx(82, abs=2), TASK: pytest.approx(298, abs=3)}
    assert shared.ask(20, f"/{TASK}", headers={HEADER: TASK}) == {TASK: 20}, "who names the default gets it"
    assert shared.ask(20, f"/{TASK}/small") == {SMALL: 20}
    assert shared.ask(20, "/v1/completions", json={"model": "large"}) == {LARGE: 20}
    assert len(shared.ask(100, "/v1/completions", json={"model": "assistant"})) == 3
    for path in ("/default", "/default/v1/completions", "/pirate", "/pirate/v1/completions"):
        assert shared.ask(20, f"/{TASK}{path}") == {TASK: 20}, "a path that may be an adapter's is the default's"
    for path in ("/", "/v1/completions", f"/v2/models/{TASK}/infer"):
        assert len(shared.ask(100, f"/{TASK}{path}")) == 3


def test_who_answers_a_share_knows_that_it_does(shared: Shared) -> None:
    shared.set(f"{TASK} large 100\n", f"{LARGE} 10000\n")
    with shared.ingress.client() as client:
        drawn, named = (
            client.post(path, json={}, headers={DRAWN_HEADER: "forged"}).json()["headers"]
            for path in ("/v1/completions", f"/{TASK}/large/v1/completions")
        )
    assert drawn[DRAWN_HEADER] == TASK
    assert DRAWN_HEADER not in named


def test_a_client_stays_where_it_was(shared: Shared) -> None:
    shared.set(f"{TASK} large 50\n{TASK} sticky\n", f"{TASK} 1\n{LARGE} 5000\n")
    assert len(shared.ask(40)) == 1


def test_clients_spread_by_the_share_each_by_its_key_wherever_it_comes_from(tmp_path: Path) -> None:
    keys, traffic, found = tmp_path / "keys", tmp_path / "traffic", dict[str, str]()
    for number in range(100):
        key, digest = new_key()
        add(keys, Key(digest, f"client-{number}"))
        found[f"client-{number}"] = key
    traffic.write_text(f"{TASK} large 30\n{TASK} sticky\n")
    config = IngressConfig(keys=str(keys), traffic=str(traffic))

    (tmp_path / "node").mkdir()
    with running(tmp_path / "node", config, applications=SEVERAL) as running_ingress:

        def answering(key: str, address: str) -> str:
            with running_ingress.client(key, transport=httpx.HTTPTransport(local_address=address)) as client:
                return str(client.post(f"/{TASK}", json={}).json()["name"])

        first = {name: answering(key, "127.0.0.1") for name, key in found.items()}
        elsewhere = {name: answering(key, f"127.0.1.{number}") for number, (name, key) in enumerate(found.items(), 1)}
        running_ingress.reload()
        later = {name: answering(key, "127.0.0.1") for name, key in found.items()}

    assert first == elsewhere == later, "a key goes before the address, whichever process answers"
    assert set(first.values()) == {TASK, LARGE}
    assert 17 <= Counter(first.values())[LARGE] <= 43, "30 of 100, by a hash of names: within three deviations"


def test_clients_without_a_key_spread_by_their_address(shared: Shared) -> None:
    shared.set(f"{TASK} large 50\n{TASK} sticky\n", f"{TASK} 1\n{LARGE} 5000\n")

    def ask(address: str) -> Counter[str]:
        with shared.ingress.client(transport=httpx.HTTPTransport(local_address=address)) as client:
            return Counter(client.post(f"/{TASK}", json={}).json()["name"] for _ in range(5))

    found = [ask(f"127.0.2.{number}") for number in range(1, 41)]

    assert [len(one) for one in found] == [1] * 40, "each stays where it was"
    assert 10 <= sum(LARGE in one for one in found) <= 30


def test_a_change_applies_in_place_and_loses_nothing(shared: Shared) -> None:
    shared.set("", "")
    assert shared.ask(20) == {TASK: 20}
    ended, outcomes = threading.Event(), Counter[tuple[int, str]]()

    def load() -> None:
        with shared.ingress.client() as client:
            while not ended.is_set():
                response = client.post(f"/{TASK}", json={})
                outcomes[response.status_code, response.json()["name"]] += 1

    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(load) for _ in range(2)]
        try:
            for percent in (10, 100, 0, 50, 100, 0):
                shared.set(f"{TASK} large {percent}\n", f"{LARGE} {100 * percent}\n")
                found = shared.ask(10)[LARGE]  # the requests of the load are drawn in between
                assert found == percent / 10 if percent in (0, 100) else found < 10
        finally:
            ended.set()
    for one in loads:
        one.result()
    assert {status for status, _ in outcomes} == {200}
    assert {name for _, name in outcomes} == {TASK, LARGE}


def test_a_file_that_is_wrong_changes_nothing(shared: Shared) -> None:
    shared.set(f"{TASK} large 100\n", f"{LARGE} 10000\n")
    shared.file.write_text(f"{TASK} large 1000\n")
    assert shared.ask(200) == {LARGE: 200}
    shared.ingress.reload()
    assert shared.ask(20) == {LARGE: 20}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"{TASK} lrage 5", f"{TASK} lrage"),
        ("summarization small 5", "summarization"),
        ("text-generatoin sticky", "text-generatoin"),
        (f"{TASK} large 5\n{TASK} gone 1\n{TASK} sticky", f"{TASK} gone"),
    ],
)
def test_a_share_of_a_model_that_is_not_deployed_is_refused(tmp_path: Path, text: str, name: str) -> None:
    file = tmp_path / "traffic"
    file.write_text(text)

    with pytest.raises(ConfigurationError) as refused:
        IngressConfig(traffic=str(file)).check_shares(list(SEVERAL))

    told = str(refused.value)
    assert told.startswith(f"ingress: {file} has {name}, which is not deployed")
    assert told.endswith(f"; allowed: {TASK}, text-classification, {TASK} large, {TASK} small")
    if name == f"{TASK} lrage":
        assert f"(did you mean '{TASK} large'?)" in told


@pytest.mark.parametrize(
    "text", ["", f"{TASK} large 5\n{TASK} sticky", f"{TASK} gone 0", "summarization gone 0 # rolled back"]
)
def test_shares_of_what_is_deployed_and_shares_of_nothing_are_taken(tmp_path: Path, text: str) -> None:
    file = tmp_path / "traffic"
    file.write_text(text)
    IngressConfig(traffic=str(file)).check_shares(list(SEVERAL))
    IngressConfig().check_shares([])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a large 101", "line 1: the shares of a are more than 100 percent"),
        ("a x 60\n\na y 60", "line 3: the shares of a are more than 100 percent"),
        ("a x 1\na x 2", "line 2: a x has a line before it"),
        ("a x", "line 1: 'a x'; allowed: TASK MODEL PERCENT, or TASK sticky"),
        ("a x 1.234", "line 1: 'a x 1.234'; allowed"),
        ("a x -1", "line 1: 'a x -1'; allowed"),
        ("ä x 1", "cannot be read"),
    ],
)
def test_a_file_of_shares_says_which_line_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "traffic"
    file.write_text(text)
    with pytest.raises(TrafficError) as error:
        read_traffic(file)
    assert problem in str(error.value)
    with pytest.raises(ConfigurationError, match="^ingress: .*traffic"):
        IngressConfig(traffic=str(file)).check(Address("127.0.0.1", 8000))
