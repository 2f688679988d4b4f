"""HAProxy's own pages of statistics and metrics, and what it has in its folder: who may do what with them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from deployments.ingress.config import IngressConfig
from deployments.ingress.haproxy import command
from deployments.ingress.keys import Key, add, new_key
from tests.deployments.ingress.running import Running, running

TASK = "/text-classification"
NOBODY = 65_534


@pytest.fixture
def ingress(tmp_path: Path) -> Iterator[Running]:
    """With keys, so that all its sockets and copies are there."""
    _, digest = new_key()
    add(tmp_path / "keys", Key(digest, "somebody"))
    (tmp_path / "node").mkdir(mode=0o700)
    with running(tmp_path / "node", IngressConfig(keys=str(tmp_path / "keys"))) as started:
        yield started


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def pages(ingress: Running) -> list[str]:
    """The URLs of statistics and metrics."""
    text = (ingress.folder / "haproxy.cfg").read_text(encoding="utf-8")
    binds = re.findall(r"^(?:frontend prometheus|listen stats)\n\s+bind (\S+)\n", text, re.MULTILINE)
    paths = [re.findall(r"prometheus-exporter if { path (\S+) }", text)[0], re.findall(r"stats uri (\S+)", text)[0]]
    return [f"http://{address}{path}" for address, path in zip(binds, paths, strict=True)]


def test_the_pages_can_be_read_and_change_nothing(ingress: Running) -> None:
    """Where `stats admin` is set, this form takes a server out."""
    metrics, statistics = pages(ingress)
    before = command(ingress.admin, "show servers state")
    for page in (metrics, statistics):
        assert httpx.get(page).status_code == 200
        for backend in ("http-text-classification", "large-text-classification"):
            form = {"s": "replica-text-classification", "b": backend, "action": "maint"}
            httpx.post(page, data=form)
            httpx.get(page, params=form)
    httpx.post(f"{statistics};st=DONE", data={"action": "shutdown"})

    def states(shown: str) -> list[list[str]]:
        """Backend, server and what an operator has said of it."""
        return [[line.split()[column] for column in (1, 3, 6)] for line in shown.strip().splitlines()[2:]]

    assert len(states(before)) > 3
    assert states(command(ingress.admin, "show servers state")) == states(before)


def test_only_the_owner_opens_the_sockets_and_reads_what_is_secret(ingress: Running) -> None:
    modes = {one.name: one.stat().st_mode & 0o777 for one in ingress.folder.iterdir()}

    for name in ("admin.sock", "ingress.sock", "peers.sock", "keys.map", "haproxy.cfg", "settings.json"):
        assert modes[name] == 0o600, name
    assert modes["haproxy"] == 0o700


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root becomes another user")
def test_another_user_of_the_machine_opens_none_of_it_though_the_folder_were_open(
    ingress: Running, closing: ExitStack
) -> None:
    """As the folder of `ray start` may be."""
    attack = """
import socket, sys
for name in sys.argv[1:]:
    try:
        if name.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(name)
        else:
            open(name, "rb").close()
        print(name)
    except PermissionError:
        pass
"""
    folder = ingress.folder
    for one in (folder, *folder.parents):
        if (mode := one.stat().st_mode & 0o777) & 0o005 != 0o005:
            one.chmod(mode | 0o005)
            closing.callback(one.chmod, mode)
    names = ["admin.sock", "ingress.sock", "peers.sock", "keys.map", "haproxy.cfg", "settings.json"]
    (folder / "open").touch(mode=0o644)
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/usr/bin/env", "python3", "-IS"]

    said = subprocess.run(
        [*become, "-c", attack, *(str(folder / one) for one in [*names, "open"])], capture_output=True, text=True
    )

    assert said.returncode == 0, said.stderr
    assert [Path(one).name for one in said.stdout.split()] == ["open"], "the attack works where a file is open"
