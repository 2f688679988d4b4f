"""The secret of a cluster: ingress and replicas derive it from Ray's token, and replicas refuse whoever lacks it."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from deployments.http.guard import FromIngress
from deployments.ingress.keys import shared_secret
from tests.deployments.ingress.running import running

TASK = "/text-classification"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token", "RAY_SERVE_ENABLE_HA_PROXY": "1"}


def given(monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: str | None) -> None:
    """An environment in which Ray has a token."""
    for name, value in {"HOME": str(folder), "RAY_AUTH_TOKEN_PATH": None, **TOKEN, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_every_node_derives_it_from_the_token_wherever_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, tmp_path)
    secret = shared_secret()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a-token\n", encoding="ascii")
    (tmp_path / "token").write_text("another", encoding="ascii")

    assert len(secret) == 64
    assert "a-token" not in secret
    given(monkeypatch, tmp_path, RAY_AUTH_TOKEN=None)
    assert shared_secret() == secret
    given(monkeypatch, tmp_path, RAY_AUTH_TOKEN=None, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert shared_secret() not in ("", secret)


@pytest.mark.parametrize("changes", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}])
def test_there_is_none_without_a_token_or_without_an_ingress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    given(monkeypatch, tmp_path, **changes)

    assert shared_secret() == ""


def test_the_ingress_adds_it_in_place_of_what_a_client_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, tmp_path)
    with running(tmp_path) as ingress, ingress.client() as client:
        seen = client.get(TASK, headers={"x-sextet-ingress": "guess"}).json()["headers"]
        config = ingress.folder / "haproxy.cfg"

    assert seen["x-sextet-ingress"] == shared_secret()
    assert config.stat().st_mode & 0o777 == 0o600


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({name.decode(): value.decode() for name, value in scope["headers"]})(scope, receive, send)


def asked(secret: str, path: str = TASK, **headers: str) -> httpx.Response:
    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(FromIngress(echo, secret))
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            return await client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return asyncio.run(scenario())


def test_a_replica_answers_the_ingress_and_the_application_never_sees_the_secret() -> None:
    answered, refused, guessed = asked("s", x_sextet_ingress="s"), asked("s"), asked("s", x_sextet_ingress="t")

    assert (answered.status_code, "x-sextet-ingress" in answered.json()) == (200, False)
    for response in (refused, guessed):
        assert (response.status_code, response.json()["error_type"]) == (403, "unauthorized")
    assert asked("s", "/-/healthz").status_code == 200
    assert asked("", x_sextet_ingress="none").status_code == 200
