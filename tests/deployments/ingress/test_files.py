"""The files of HAProxy: how many there are after a long time, and what it does where none can be written."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.cluster.ray_environment import spare_port
from deployments.ingress.config import IngressConfig
from tests.deployments.ingress.running import command, ray_file

RELOADS = 14
KEPT = 10  # of the last processes, Ray Serve keeps what they said
MANAGER = """
import asyncio, json, os, sys
from pathlib import Path
from deployments.cluster.restart import keep_haproxy_running
keep_haproxy_running()
from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
from ray.serve.config import HTTPOptions

folder, reloads, public, metrics, stats = sys.argv[1], *map(int, sys.argv[2:])

async def manage():
    options = HTTPOptions(host="127.0.0.1", port=public)
    config = HAProxyConfig(socket_path=f"{folder}/admin.sock", server_state_base=folder, is_head=True,
        server_state_file=f"{folder}/state", http_options=options, metrics_port=metrics, stats_port=stats)
    api = HAProxyApi(config, {}, config_file_path=f"{folder}/haproxy.cfg")
    await api.start()
    for _ in range(reloads):
        await api.reload()
    for _ in range(reloads):
        killed = api._proc
        killed.kill()
        while api._proc is killed:
            await asyncio.sleep(0.01)
    print(json.dumps(sorted(one.name for one in Path(folder).iterdir())), flush=True)
    await api.stop()

asyncio.run(manage())
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Ray's own file, and beside it the script that runs HAProxy on it."""
    file = ray_file(tmp_path, metrics_port=spare_port(), stats_port=spare_port())
    command(tmp_path, file, IngressConfig())
    return file


def test_reloads_and_deaths_leave_no_files_behind(written: Path) -> None:
    folder = written.parent
    ports = [str(spare_port()) for _ in range(3)]
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / "haproxy"), "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    before = {one.name for one in folder.iterdir()}

    script = [sys.executable, "-c", MANAGER, str(folder), str(RELOADS), *ports]
    ended = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)

    assert ended.returncode == 0, ended.stderr[-2000:]
    new = set(json.loads(ended.stdout.splitlines()[-1])) - before
    logs = {name for name in new if name.endswith(".log")}
    assert len(logs) <= 2 * (KEPT + 3)  # one that runs, and those that have just been replaced
    assert new - logs == {"admin.sock", "ingress.sock", "state"}


def prepare(file: Path, largest_file: int) -> int:
    """The exit status of what runs before HAProxy, where a file may have so many bytes."""
    run = "import sys; from deployments.ingress.node import main; main('prepare', *sys.argv[1:])"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    settings = file.parent / "settings.json"
    return subprocess.run([sys.executable, "-c", run, str(settings), str(file)], preexec_fn=limit).returncode


def test_haproxy_starts_again_after_its_end_though_nothing_can_be_written(written: Path) -> None:
    assert prepare(written, 2**20) == 0
    text = written.read_text(encoding="utf-8")

    assert prepare(written, 0) == 0
    assert written.read_text(encoding="utf-8") == text


def test_a_configuration_that_cannot_be_rewritten_is_not_run(written: Path) -> None:
    text = written.read_text(encoding="utf-8")

    files = set(written.parent.iterdir())

    assert prepare(written, 0) != 0
    assert written.read_text(encoding="utf-8") == text
    assert set(written.parent.iterdir()) == files
