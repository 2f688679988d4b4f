"""Installation: the environments of peers, under .peers/, kept between runs.

The requirements of a peer are complete, so pip resolves nothing and brings no package that they do not name: no CUDA
for servers that run on a CPU. TORCH_INDEX, which `make` sets, has torch's builds for CPUs. How an installation ended is
kept beside it: a changed requirement installs anew.
"""

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from benchmarks import Say
from benchmarks.peers.peer import FAILED, Installed, PeerError


def ensure(peers: Collection[Installed], say: Say) -> None:
    """Install those that cannot be started as they are; raises PeerError where one still cannot."""
    absent = {peer.environment: peer for peer in peers if not peer.needs and peer.missing()}
    with suppress(PeerError):  # its reason is kept, and said below for all peers that share an environment
        install(list(absent.values()), say)
    if missing := [f"{peer.name} ({reason})" for peer in peers if (reason := peer.missing())]:
        raise PeerError(f"cannot be compared with {'; '.join(missing)}")


def install(peers: Sequence[Installed], say: Say) -> None:
    """Install each anew; raises PeerError at the end for those that failed."""
    failed = []
    index = [part for url in os.environ.get("TORCH_INDEX", "").split() for part in ("--extra-index-url", url)]
    for peer in peers:
        if peer.needs:
            say(f"{peer.name}: uses the project's own environment")
            continue
        say(f"{peer.name}: installing into {peer.environment}")
        reason = _run([sys.executable, "-m", "venv", "--clear", str(peer.environment)]) or _run(
            [str(peer.python), "-m", "pip", "install", "--no-deps", *index, "-r", str(peer.requirements)], peer.building
        )
        ended = f"{FAILED}{reason}\n" if reason else peer.requirements.read_text(encoding="utf-8")
        peer.environment.mkdir(parents=True, exist_ok=True)
        peer.installation.write_text(ended, encoding="utf-8")
        if reason:
            failed.append(f"{peer.name} ({reason})")
    if failed:
        raise PeerError(f"not installed: {'; '.join(failed)}")


def _run(command: list[str], variables: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """The last line of what a failed command said; None for one that succeeded."""
    environment = os.environ | dict(variables)
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode == 0:
        return None
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"status {finished.returncode}"
