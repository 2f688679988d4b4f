"""Install: an environment of its own for each peer, from its pinned requirements.

The requirements are complete, so pip resolves nothing and brings no package that they do not name: no CUDA for
servers that run on a CPU. How an installation ended is kept beside it: a later benchmark lists the peer with it.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence

from benchmarks.peers.peer import Installed, PeerError


def install(peers: Sequence[Installed], say: Callable[[str], None]) -> None:
    """Install each anew; raises PeerError at the end for those that failed."""
    failed = []
    for peer in peers:
        if peer.needs:
            say(f"{peer.name}: uses the project's own environment")
            continue
        say(f"{peer.name}: installing into {peer.environment}")
        _run([sys.executable, "-m", "venv", "--clear", str(peer.environment)])
        reason = _run([str(peer.python), "-m", "pip", "install", "--no-deps", "-r", str(peer.requirements)])
        peer.installation.write_text(f"cannot be installed: {reason}\n" if reason else "", encoding="utf-8")
        if reason:
            failed.append(f"{peer.name} ({reason})")
    if failed:
        raise PeerError(f"not installed: {'; '.join(failed)}")


def _run(command: list[str]) -> str | None:
    """The last line of what a failed command said; None for one that succeeded."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return None
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"status {finished.returncode}"
